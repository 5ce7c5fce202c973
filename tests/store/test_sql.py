"""What is particular to a store in a database file: what can go wrong with files, and what stays on the disk."""

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, inspect

from deltamem_agents.errors import ConflictError, SessionNotFoundError, StoreError
from deltamem_agents.store import Snapshot, SQLStore, migrations
from deltamem_agents.store.tables import metadata

Child = Callable[..., Snapshot]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@contextmanager
def on_connect(*pragmas: str) -> Iterator[None]:
    """Runs pragmas on every new connection."""

    def run(connection: Any, _: object) -> None:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    event.listen(Engine, "connect", run)
    try:
        yield
    finally:
        event.remove(Engine, "connect", run)


def on_disk(folder: Path, text: str) -> list[str]:
    """The files that hold the text."""
    return [file.name for file in folder.iterdir() if text.encode() in file.read_bytes()]


# Opening


def test_the_file_is_set_up_as_intended(path: Path) -> None:
    with SQLStore(path), closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert raw.execute("SELECT * FROM deltamem_meta").fetchall() == [("schema", "3")]


def test_migrations_make_the_tables_that_queries_expect(path: Path) -> None:
    assert list(migrations.MIGRATIONS) == list(range(1, migrations.LATEST + 1))
    SQLStore(path).close()
    found = inspect(create_engine(f"sqlite:///{path}"))
    assert set(found.get_table_names()) == set(metadata.tables)
    for name, table in metadata.tables.items():
        assert [column["name"] for column in found.get_columns(name)] == list(table.c.keys())
        assert found.get_pk_constraint(name)["constrained_columns"] == list(table.primary_key.columns.keys())


def test_it_survives_reopening_and_odd_paths(tmp_path: Path, child: Child) -> None:
    path = tmp_path / "a ?#%20 folder" / "é;.db"
    path.parent.mkdir()
    turn = child(None, "alice", "hello")
    with SQLStore(path) as store:
        store.commit("alice", turn, expected=None)
    with SQLStore(str(path)) as store:
        assert store.snapshot(turn.id) == turn
    assert path.is_file()


def test_a_newer_schema_is_refused(path: Path) -> None:
    SQLStore(path).close()
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE deltamem_meta SET value = '7'")
    with pytest.raises(StoreError, match=r"schema version 7, expected at most 3: .* upgrade"):
        SQLStore(path)


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("a diary, not a database\n" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"store\.db is not a database: expected a SQLite file"):
        SQLStore(path)
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("CREATE TABLE recipes (name)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program's database with tables recipes: expected"):
        SQLStore(path)
    assert path.read_bytes() == before


def test_a_damaged_database(path: Path, child: Child) -> None:
    with SQLStore(path) as store:
        store.commit("alice", child(None, "alice", *("text" * 100 for _ in range(50))), expected=None)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(StoreError, match="is damaged: expected a sound SQLite database"), SQLStore(path) as store:
        store.line(store.sessions()[0].head or "")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened: expected a file"):
        SQLStore(tmp_path)


def test_a_path_below_a_file_is_refused(path: Path) -> None:
    path.write_text("")
    with pytest.raises(StoreError, match="cannot be created: there is no folder"):
        SQLStore(path / "store.db")


@pytest.mark.parametrize("url", ["nosuch://host/db", "://", "sqlite+nosuch:///x.db"])
def test_bad_urls_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        SQLStore(url)


def test_errors_hide_the_password() -> None:
    with pytest.raises(StoreError) as caught:
        SQLStore("postgresql://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)


# Writing, when it cannot be done


def test_a_read_only_store_reads_and_refuses_to_write(path: Path, child: Child) -> None:
    turn = child(None, "alice", "hello")
    with SQLStore(path) as store:
        store.commit("alice", turn, expected=None)
    with SQLStore(f"sqlite:///file:{path}?mode=ro&uri=true") as store:
        assert store.snapshot(turn.id) == turn
        with pytest.raises(StoreError, match="is read-only: expected a file and folder to write to"):
            store.commit("alice", child(turn, "alice", "x"), expected=turn.id)
        with pytest.raises(StoreError, match="is read-only"):
            store.forget("alice")


def test_a_locked_store_reads_and_refuses_to_write(path: Path, child: Child) -> None:
    turn = child(None, "alice", "hello")
    with SQLStore(path, timeout=0.1) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        store.commit("alice", turn, expected=None)
        other.execute("BEGIN IMMEDIATE")
        assert store.snapshot(turn.id) == turn
        with pytest.raises(StoreError, match="is locked: another process holds its write lock"):
            store.commit("alice", child(turn, "alice", "x"), expected=turn.id)
        other.execute("ROLLBACK")
        store.commit("alice", child(turn, "alice", "x"), expected=turn.id)


def test_a_full_disk_leaves_the_store_as_it_was(path: Path, child: Child) -> None:
    turn = child(None, "alice", "hello")
    with SQLStore(path) as store:
        store.commit("alice", turn, expected=None)
    with on_connect("max_page_count=20"), SQLStore(path) as store:
        big = child(turn, "alice", *("text" * 1000 for _ in range(20)))
        with pytest.raises(StoreError, match="has no room left on its disk: nothing was written"):
            store.commit("alice", big, expected=turn.id)
        with pytest.raises(StoreError, match="not in this store"):
            store.snapshot(big.id)
        store.commit("alice", child(turn, "alice", "small"), expected=turn.id)


def test_malformed_data_is_a_typed_error(path: Path, child: Child) -> None:
    with SQLStore(path) as store:
        for bad in (child(None, "alice", fingerprint="\ud800"), child(None, "alice", fingerprint=None)):
            with pytest.raises(StoreError, match="well formed") as caught:
                store.commit("alice", bad, expected=None)
            assert not isinstance(caught.value, ConflictError)
        assert store.sessions() == []


# Deleting for good


def test_nothing_of_a_forgotten_session_is_left_on_the_disk(tmp_path: Path, path: Path, child: Child) -> None:
    with SQLStore(path) as store:
        heads: dict[str, Snapshot | None] = {"alice": None, "bob": None}
        for number in range(40):  # interleaved, so that they share pages
            for name, head in heads.items():
                words = [f"{name}-secret-{number}-{i} " * (1 + number * i) for i in range(3)]
                turn = child(head, name, *words, state=f"{name}-secret-state ".encode() * 500)
                store.commit(name, turn, expected=head.id if head else None)
                heads[name] = turn
        assert on_disk(tmp_path, "alice")
        store.forget("alice")
        assert on_disk(tmp_path, "alice") == []
        assert on_disk(tmp_path, "bob-secret")
        wal = path.with_name("store.db-wal")
        assert wal.stat().st_size == 0
    assert on_disk(tmp_path, "alice") == []


def test_pruned_text_leaves_the_disk_when_the_store_is_closed(tmp_path: Path, path: Path, child: Child) -> None:
    with SQLStore(path) as store:
        first = child(None, "alice", *(f"secret-{number}" * 50 for number in range(50)))
        store.commit("alice", first, expected=None)
        assert on_disk(tmp_path, "secret-1")
        store.commit("alice", child(first, "alice", "x"), expected=first.id)
        store.prune("alice", keep=1)
    assert on_disk(tmp_path, '"secret-') == []


def test_forget_says_when_a_reader_holds_the_log(path: Path, child: Child) -> None:
    turn = child(None, "alice", "secret")
    with SQLStore(path, timeout=0.1) as store, closing(sqlite3.connect(path, isolation_level=None)) as reader:
        store.commit("alice", turn, expected=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM deltamem_entries").fetchall()
        with pytest.raises(StoreError, match=r"deleted, but its bytes are still in .*store\.db-wal"):
            store.forget("alice")
        assert store.session("alice") is None
        reader.execute("ROLLBACK")


def test_erase_says_when_a_reader_holds_the_log_and_the_next_one_ends_it(path: Path, child: Child) -> None:
    with SQLStore(path, timeout=0.05) as store:
        first, secret, other = (child(None, "alice", text) for text in ("a", "the secret", "b"))
        for turn in (first, secret, other):
            store.commit("alice", turn, expected=None)
            store.move_head("alice", None, expected=turn.id)
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM deltamem_entries").fetchall()
            with pytest.raises(StoreError, match=r"still in .*-wal.* or when you delete anything else from it"):
                store.erase("alice", [secret.id])
        assert store.erase("alice", [other.id]) == 1
        assert [turn.id for turn in store.log("alice")] == [first.id]
        assert b"the secret" not in path.read_bytes() + path.with_name("store.db-wal").read_bytes()


def test_a_second_forget_ends_what_a_reader_was_in_the_way_of(path: Path, child: Child) -> None:
    secret = "the secret is 4711"
    with SQLStore(path, timeout=0.05) as store:
        for name in ("alice", "bob"):
            store.commit(name, child(None, name, secret), expected=None)
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM deltamem_entries").fetchall()
            for _ in range(2):
                with pytest.raises(StoreError, match=r"when you forget the session once more"):
                    store.forget("alice")
            with pytest.raises(SessionNotFoundError):
                store.forget("nobody")
        store.forget("alice")
        assert path.with_name("store.db-wal").stat().st_size == 0
        with pytest.raises(SessionNotFoundError):
            store.forget("alice")
        store.forget("bob")
        assert secret.encode() not in path.read_bytes()


@pytest.mark.parametrize("later", ["open", "prune"])
def test_whoever_comes_later_ends_it_too(later: str, path: Path, child: Child) -> None:
    store = SQLStore(path, timeout=0.05)
    for name in ("alice", "bob"):
        store.commit(name, child(None, name, "the secret"), expected=None)
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM deltamem_entries").fetchall()
        with pytest.raises(StoreError, match="once more"):
            store.forget("alice")
        SQLStore(path).close()  # nobody waits for the reader
    if later == "open":
        SQLStore(path).close()
    else:
        store.prune("bob", keep=1)
    with pytest.raises(SessionNotFoundError):
        store.forget("alice")
    assert b"alice" not in path.read_bytes() + path.with_name("store.db-wal").read_bytes()
    store.close()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_new_file_is_its_owners_alone(path: Path, child: Child) -> None:
    with SQLStore(path) as store:
        store.commit("alice", child(None, "alice", "hello"), expected=None)
        assert [stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("store.db*")] == [0o600] * 3
    path.chmod(0o640)
    with SQLStore(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640  # shared on purpose


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no folder .*nowhere; make it"):
        SQLStore(tmp_path / "nowhere" / "store.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_gets_connections_of_its_own(path: Path, child: Child) -> None:
    with SQLStore(path) as store:
        first = child(None, "alice", "hello")
        store.commit("alice", first, expected=None)
        pid = os.fork()
        if pid == 0:
            store.commit("alice", child(first, "alice", "from the fork"), expected=first.id)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        info = store.session("alice")
        assert info is not None
        assert info.turns == 2
