"""Databases of earlier versions go on: what was in them, what is counted anew, and upgrades that fail or collide."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from deltamem_agents.errors import StoreError
from deltamem_agents.store import Snapshot, SQLStore, migrations

Child = Callable[..., Snapshot]

# (id, parent, thread, turn, messages, tokens): alice's line is a, b, c, e, f with two threads; d is a reply she left;
# old is the rest of a line that was pruned; bob has a line of his own, forked off alice's. Threads without a label were
# labelled after their sessions.
TURNS = [
    ("a", None, "alice", 1, 2, 20),
    ("b", "a", "u", 2, 3, 30),
    ("c", "b", "alice", 3, 5, 50),
    ("d", "b", "bob", 3, 4, 40),
    ("e", "c", "u", 4, 5, 50),
    ("f", "e", "u", 5, 7, 70),
    ("old", None, "t", 8, 31, 400),
    ("old2", "old", "t", 9, 32, 410),
    ("old3", "old2", "u", 10, 33, 420),
    ("g", "b", "bob", 3, 4, 40),
]
ENTRIES = {"a": 2, "b": 1, "c": 2, "d": 1, "e": 0, "f": 2, "old": 1, "old2": 1, "old3": 1, "g": 1}
COUNTS = {
    "a": (2, 20),
    "b": (1, 10),
    "c": (4, 40),
    "d": (1, 10),
    "e": (1, 10),
    "f": (3, 30),
    "old": (31, 400),
    "old2": (32, 410),
    "old3": (1, 10),
    "g": (3, 30),
}
"""What version 2 shall say: messages and tokens of each turn's thread."""


def owner_of(id: str) -> str:
    return "pruned" if id.startswith("old") else "bob" if id == "g" else "alice"


def state_of(id: str) -> bytes:
    return f"state of {id} ".encode() * 500


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database as version 1 left it."""
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("PRAGMA journal_mode=WAL")
        for statement in migrations.MIGRATIONS[1]:
            assert isinstance(statement, str)
            raw.execute(statement.format(blob="BLOB"))
        raw.execute("UPDATE deltamem_meta SET value = '1'")
        for id, parent, thread, turn, messages, tokens in TURNS:
            counts = (turn, messages, tokens)
            row = (id, parent, owner_of(id), thread, *counts, "f", "2024-01-01T00:00:00+00:00", "turn", state_of(id))
            raw.execute(f"INSERT INTO deltamem_snapshots VALUES ({', '.join('?' * 11)})", row)
            for position in range(messages - ENTRIES[id], messages):
                entry = (id, position, "user", "digest", f"{id}{position}", 1, '{"content": "x"}', 10)
                raw.execute("INSERT INTO deltamem_entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", entry)
        for name, head in {"alice": "f", "bob": "g", "pruned": "old3", "empty": None}.items():
            times = ("2024-01-01T00:00:00+00:00", "2024-01-02T00:00:00+00:00")
            raw.execute("INSERT INTO deltamem_sessions VALUES (?, ?, ?, ?)", (name, head, *times))
    return path


def version(path: Path) -> str:
    with closing(sqlite3.connect(path)) as raw:
        return str(raw.execute("SELECT value FROM deltamem_meta WHERE key = 'schema'").fetchone()[0])


def check(store: SQLStore) -> None:
    """All that version 1 knew is still there, and the threads are labelled and counted."""
    for id, parent, thread, turn, messages, _ in TURNS:
        found = store.snapshot(id)
        assert (found.parent, found.turn, found.messages) == (parent, turn, messages)
        assert found.thread == ("main" if thread == owner_of(id) else thread)
        assert (found.thread_messages, found.thread_tokens) == COUNTS[id]
        assert (found.state, found.key, found.note) == (state_of(id), None, None)
        expected = [f"{id}{position}" for position in range(found.start, found.messages)]
        assert [entry.message_id for entry in found.entries] == expected
        assert all(entry.text == '{"content": "x"}' for entry in found.entries)
    heads = {info.name: info.head for info in store.sessions()}
    assert heads == {"alice": "f", "bob": "g", "empty": None, "pruned": "old3"}


def test_a_version_1_database_is_upgraded(path: Path, child: Child) -> None:
    with SQLStore(path) as store:
        check(store)
        assert [turn.id for turn in store.thread("f", "u", last=2)] == ["f"]
        assert [turn.id for turn in store.thread("f", "u", last=3)] == ["b", "e", "f"]
        assert {id: turn.id for id, turn in store.find("alice", ["a0", "d3", "g3"]).items()} == {"a0": "a", "d3": "d"}
        head = store.snapshot("f")
        more = child(head, "alice", "x", thread="main", before=store.snapshot("c"), key="k")
        store.commit("alice", more, expected="f")
        assert [turn.id for turn in store.thread(more.id, "main", last=9)] == ["a", "c", more.id]
        assert [turn.id for turn in store.thread("g", "main", last=9)] == ["a", "g"]
        store.forget("alice")
        assert [turn.id for turn in store.line("g")] == ["a", "b", "g"]
    assert version(path) == "3"
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
    with SQLStore(path) as store:
        assert [info.name for info in store.sessions()] == ["bob", "empty", "pruned"]


def test_processes_upgrade_at_once_and_one_does_it(path: Path) -> None:
    code = """
import sys
from deltamem_agents.store import SQLStore
print("ready", flush=True)
sys.stdin.readline()
with SQLStore(sys.argv[1], timeout=60) as store:
    print(store.snapshot("f").thread_messages)
"""
    command = [sys.executable, "-c", code, str(path)]
    pipe = subprocess.PIPE
    racers = [subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(3)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=120) for racer in racers]
    assert [output for output, _ in outputs] == ["3\n"] * 3, outputs
    with SQLStore(path) as store:
        check(store)


def test_an_upgrade_waits_for_a_writer_and_then_goes_on(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="is locked: another process holds its write lock"):
            SQLStore(path, timeout=0.1)
        assert version(path) == "1"
        old.execute("ROLLBACK")
        with SQLStore(path) as store:
            check(store)
        # Whoever still runs version 1 can write no more: its statement names a column that is gone.
        with pytest.raises(sqlite3.OperationalError, match="no column named tokens"):
            old.execute("INSERT INTO deltamem_snapshots (id, tokens) VALUES ('x', 1)")


def test_an_upgrade_on_a_full_disk_leaves_version_1_as_it_was(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (pages,) = raw.execute("PRAGMA page_count").fetchone()
    before = path.read_bytes()

    def no_room(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    event.listen(Engine, "connect", no_room)
    try:
        with pytest.raises(StoreError, match="has no room left on its disk: nothing was written"):
            SQLStore(path)
    finally:
        event.remove(Engine, "connect", no_room)
    assert path.read_bytes() == before
    with SQLStore(path) as store:
        check(store)
