"""What the store tests share: turns to commit, and one of each kind of store."""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from deltamem_agents.store import Entry, MemoryStore, Snapshot, SQLStore, StateStore
from deltamem_agents.store.tables import metadata

Child = Callable[..., Snapshot]
POSTGRESQL = os.environ.get("DELTAMEM_TEST_POSTGRESQL", "")


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


def postgresql() -> SQLStore:
    """An emptied store in the database that DELTAMEM_TEST_POSTGRESQL names."""
    engine = create_engine(POSTGRESQL)
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE IF EXISTS {', '.join(metadata.tables)} CASCADE"))
    engine.dispose()
    return SQLStore(POSTGRESQL)


@pytest.fixture(params=["memory", "file", "sqlite-memory", *(["postgresql"] if POSTGRESQL else [])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
    kinds: dict[str, Callable[[], StateStore]] = {
        "memory": MemoryStore,
        "file": lambda: SQLStore(tmp_path / "store.db"),
        "sqlite-memory": lambda: SQLStore("sqlite://"),
        "postgresql": postgresql,
    }
    with kinds[request.param]() as opened:
        yield opened
