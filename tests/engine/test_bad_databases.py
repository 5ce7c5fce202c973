"""Stores that are locked, read-only, full, damaged or none: said, and nothing half done."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from deltamem_agents import DeltaMemEngine, MemoryStore, SQLStore, StateError, StoreError
from tests.chat import byte_tokenizer
from tests.engine.conftest import Start, model_for
from tests.engine.saying import goes_on, user


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A database with a session in it."""
    path = tmp_path / "store.db"
    with DeltaMemEngine(model_for(), byte_tokenizer(), store=path) as engine:
        engine.generate([user("hi")], session="alice", max_new_tokens=2)
    return path


def test_a_locked_database(told: Path, start: Start) -> None:
    engine = start(store=SQLStore(told, timeout=0.05))
    head = engine.sessions()
    with closing(sqlite3.connect(told)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="is locked"):
            engine.generate([user("the cat")], session="alice", max_new_tokens=2)
        with pytest.raises(StoreError, match="is locked"):
            engine.absorb([user("the cat")], session="alice")
        with pytest.raises(StoreError, match="is locked"):
            engine.forget("alice")
        assert engine.generate([user("the cat")], session="alice", memory="read", max_new_tokens=2).reply.content
    assert engine.sessions() == head
    engine.generate([user("the cat")], session="alice", max_new_tokens=2)
    assert engine.sessions()[0].messages == 4


def test_a_read_only_database(told: Path, start: Start) -> None:
    engine = start(store=f"sqlite:///file:{told}?mode=ro&uri=true")
    with pytest.raises(StoreError, match="read-only"):
        engine.generate([user("the cat")], session="alice", max_new_tokens=2)
    assert engine.generate([user("the cat")], session="alice", memory="read", max_new_tokens=2).reply.content
    assert engine.sessions()[0].messages == 2


def test_a_full_database(told: Path, start: Start) -> None:
    store = SQLStore(told)
    engine = start(store=store)
    head = engine.sessions()
    with store._database._reader.connect() as connection:  # a limit on the pages is the nearest thing to a full disk
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def fill() -> None:
        for number in range(50):
            engine.generate([user(f"{number} " + "word " * 100)], session=f"s{number}", max_new_tokens=2)

    with pytest.raises(StoreError, match="no room left"):
        fill()
    kept = engine.sessions(prefix="s")
    assert all((info.turns, info.messages) == (1, 2) for info in kept)
    assert engine.sessions(prefix="alice") == head
    engine.forget("s0") if kept else engine.forget("alice")
    with start(store=told) as again:
        goes_on(again)


def test_a_damaged_database(told: Path, start: Start) -> None:
    data = bytearray(told.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    told.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        start(store=told).generate([user("hi")], session="alice", max_new_tokens=2)


def test_no_database_at_all(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be read as one " * 20)
    with pytest.raises(StoreError, match=r"notes\.txt is not a database: expected a SQLite file"):
        start(store=path)
    with pytest.raises(StoreError, match="cannot be"):
        start(store=tmp_path)


def test_a_damaged_state_is_not_used(told: Path, start: Start) -> None:
    with closing(sqlite3.connect(told)) as connection:
        [(state,)] = connection.execute("SELECT state FROM deltamem_snapshots").fetchall()
        connection.execute("UPDATE deltamem_snapshots SET state = ?", (state[:-1] + bytes([state[-1] ^ 1]),))
        connection.commit()
    engine = start(store=told)
    with pytest.raises(StateError, match="damaged"):
        engine.state("alice")
    with pytest.raises(StateError, match="damaged"):
        engine.generate([user("hi")], session="alice", recent_messages=0)
    goes_on(engine)


def test_an_engine_that_could_not_be_made_leaves_the_model_usable(start: Start, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        start(store=tmp_path)
    goes_on(start(store=MemoryStore()))
