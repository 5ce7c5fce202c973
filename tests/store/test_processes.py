"""Several processes on one store: they race, and are killed in mid-transaction."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from deltamem_agents.store import Snapshot, SQLStore
from deltamem_agents.store.tables import entries, snapshots

Child = Callable[..., Snapshot]

COMMIT = """
import sys, uuid
from datetime import UTC, datetime
from deltamem_agents.errors import ConflictError
from deltamem_agents.store import Entry, Snapshot, SQLStore

def turn(parent, by):
    entry = Entry(role="user", digest="d", message_id=by, text="{}", tokens=2, written=True)
    return Snapshot(
        id=uuid.uuid4().hex, parent=parent.id if parent else None, session="alice", thread="alice", fingerprint="f",
        turn=parent.turn + 1 if parent else 1, messages=parent.messages + 1 if parent else 1,
        thread_messages=parent.thread_messages + 1 if parent else 1,
        thread_tokens=parent.thread_tokens + 2 if parent else 2,
        created_at=datetime.now(UTC), state=b"state", entries=(entry,), kind="turn",
    )
"""


@pytest.fixture(params=["file", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store shall be."""
    return str(tmp_path / "store.db") if request.param == "file" else str(request.getfixturevalue("url"))


def test_processes_race_and_one_wins_each_round(place: str) -> None:
    race = """
store, head = SQLStore(sys.argv[1]), None
print("ready", flush=True)
sys.stdin.readline()
while head is None or head.turn < 30:
    new = turn(head, sys.argv[2])
    try:
        store.commit("alice", new, expected=head.id if head else None)
        print(new.turn)
    except ConflictError:
        pass
    head = store.snapshot(store.session("alice").head)
"""
    command = [sys.executable, "-c", COMMIT + race, place]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    racers: list[Any] = [subprocess.Popen([*command, str(number)], text=True, **pipes) for number in range(3)]
    for racer in racers:  # all of them created the file and its tables at the same time, too
        assert racer.stdout.readline() == "ready\n", racer.communicate()[1]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], outputs
    won = sorted(int(turn) for output, _ in outputs for turn in output.split())
    with SQLStore(place) as store:
        (info,) = store.sessions()
        assert won == list(range(1, info.turns + 1))
        line = store.line(info.head or "")
        assert [snapshot.turn for snapshot in line] == won


def test_a_process_killed_in_mid_transaction_leaves_the_store_as_it_was(place: str, child: Child) -> None:
    kill = """
import os, signal
from sqlalchemy import Engine, event

@event.listens_for(Engine, "before_cursor_execute")
def die(connection, cursor, statement, *rest):
    if statement.startswith("UPDATE deltamem_sessions"):
        os.kill(os.getpid(), signal.SIGKILL)

store = SQLStore(sys.argv[1])
head = store.snapshot(store.session("alice").head)
store.commit("alice", turn(head, "killed"), expected=head.id)
"""
    first = child(None, "alice", "hello")
    with SQLStore(place) as store:
        store.commit("alice", first, expected=None)
    killed = subprocess.run([sys.executable, "-c", COMMIT + kill, place], check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    with SQLStore(place) as store:
        for table in (snapshots, entries):
            count = select(func.count()).select_from(table)
            assert store._database.read(lambda connection, count=count: connection.scalar(count)) == 1
        store.commit("alice", child(first, "alice", "on"), expected=first.id)
