"""What the store tests share: turns to commit, and one of each kind of store."""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deltamem_agents.store import Entry, MemoryStore, Snapshot, SQLStore, StateStore
from tests.postgresql import Server

Child = Callable[..., Snapshot]


def entry(content: str) -> Entry:
    return Entry(
        role="user",
        digest=hashlib.sha256(content.encode()).hexdigest(),
        message_id=None,
        text=json.dumps({"content": content}),
        tokens=len(content),
        written=True,
    )


@pytest.fixture(scope="session")
def child() -> Child:
    """Makes the next turn of a session: child(parent, session, *texts), with fields to change by name.

    The counts of a thread go on from the parent, if that is of the thread, or from `before`, its last turn on the line.
    """

    def make(
        parent: Snapshot | None, session: str, *texts: str, before: Snapshot | None = None, **changes: object
    ) -> Snapshot:
        id = uuid.uuid4().hex
        thread = changes.get("thread", session)
        if before is None and parent is not None and parent.thread == thread:
            before = parent
        fields: dict[str, object] = {
            "id": id,
            "parent": parent.id if parent else None,
            "session": session,
            "thread": session,
            "turn": parent.turn + 1 if parent else 1,
            "messages": (parent.messages if parent else 0) + len(texts),
            "thread_messages": (before.thread_messages if before else 0) + len(texts),
            "thread_tokens": (before.thread_tokens if before else 0) + sum(map(len, texts)),
            "fingerprint": "model+adapter",
            "created_at": datetime.now(UTC),
            "state": f"state {id}".encode(),
            "entries": tuple(entry(text) for text in texts),
            "kind": "turn",
        }
        return Snapshot(**(fields | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def url(postgresql: Server) -> str:
    """Of a new, empty database."""
    return postgresql.fresh()


@pytest.fixture(params=["memory", "file", "sqlite-memory", "postgresql", "pgbouncer"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
    with open_kind(request, tmp_path) as opened:
        yield opened


def open_kind(request: pytest.FixtureRequest, tmp_path: Path) -> StateStore:
    match request.param:
        case "memory":
            return MemoryStore()
        case "file":
            return SQLStore(tmp_path / "store.db")
        case "sqlite-memory":
            return SQLStore("sqlite://")
    server: Server = request.getfixturevalue("postgresql")
    port = request.getfixturevalue("pgbouncer") if request.param == "pgbouncer" else None
    return SQLStore(server.url(server.database(), port=port))


def grow(store: StateStore, child: Child, name: str, turns: int, *, parent: Snapshot | None = None) -> list[Snapshot]:
    """Commits turns of two messages each."""
    line: list[Snapshot] = []
    for _ in range(turns):
        start = parent.messages if parent else 0
        turn = child(parent, name, f"{name} says {start}", f"reply {start + 1}")
        info = store.session(name)
        store.commit(name, turn, expected=info.head if info else None)
        line.append(turn)
        parent = turn
    return line


def bare(snapshots: list[Snapshot]) -> list[Snapshot]:
    return [replace(snapshot, state=b"") for snapshot in snapshots]
