"""A store in this process's memory: for tests and throw-away sessions, and the plain meaning of the contract."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from deltamem_agents.errors import StoreError
from deltamem_agents.store.base import (
    StateStore,
    check_child,
    check_head,
    check_keep,
    closed,
    not_its_own,
    pruned,
    taken,
    unknown_session,
    unknown_snapshot,
)
from deltamem_agents.store.records import Entry, SessionInfo, Snapshot


@dataclass(slots=True)
class _Session:
    head: str | None
    created_at: datetime
    updated_at: datetime


class MemoryStore(StateStore):
    """A `StateStore` in dictionaries; what it holds ends with it."""

    def __init__(self) -> None:
        """Starts empty."""
        self._lock = threading.RLock()
        self._sessions: dict[str, _Session] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._closed = False

    def session(self, name: str) -> SessionInfo | None:
        """Looks a session up; see `StateStore.session`."""
        with self._open():
            return self._info(name) if name in self._sessions else None

    def sessions(self, *, prefix: str = "") -> list[SessionInfo]:
        """Lists sessions; see `StateStore.sessions`."""
        with self._open():
            return [self._info(name) for name in sorted(self._sessions) if name.startswith(prefix)]

    def snapshot(self, id: str) -> Snapshot:
        """Loads a snapshot; see `StateStore.snapshot`."""
        with self._open():
            return self._get(id)

    def line(self, head: str, *, since: int = 0) -> list[Snapshot]:
        """Lists a line; see `StateStore.line`."""
        with self._open():
            newest_first = []
            for snapshot in self._ancestry(head):
                if snapshot.messages <= since:
                    break
                newest_first.append(replace(snapshot, state=b""))
            return newest_first[::-1]

    def boundary(self, head: str, position: int) -> Snapshot | None:
        """Loads the state at a position; see `StateStore.boundary`."""
        with self._open():
            for snapshot in self._ancestry(head):
                if snapshot.messages <= position:
                    return snapshot
            if snapshot.start > 0:
                raise pruned(head, position, start=snapshot.start)
            return None

    def commit(self, name: str, snapshot: Snapshot, *, expected: str | None, drop_text_before: int = 0) -> None:
        """Adds a snapshot and moves the head to it; see `StateStore.commit`."""
        with self._open():
            session = self._sessions.get(name)
            check_head(name, found=session.head if session else None, expected=expected)
            parent = self._snapshots.get(snapshot.parent) if snapshot.parent is not None else None
            check_child(name, snapshot, (parent.turn, parent.messages) if parent else None)
            if snapshot.id in self._snapshots:
                raise StoreError(f"snapshot {snapshot.id!r} is in this store already: give each turn a new id")
            self._snapshots[snapshot.id] = replace(snapshot, created_at=snapshot.created_at.astimezone(UTC))
            self._point(name, snapshot.id)
            self._drop_text(name, snapshot.id, drop_text_before)

    def move_head(self, name: str, to: str | None, *, expected: str | None) -> None:
        """Moves the head; see `StateStore.move_head`."""
        with self._open():
            head = self._find(name).head
            check_head(name, found=head, expected=expected)
            if to is not None and self._get(to).session != name and to not in self._ids(head):
                raise not_its_own(name, to, head=head)
            self._point(name, to)

    def fork(self, name: str, new_name: str, *, at: str | None = None) -> None:
        """Creates a session on another one's line; see `StateStore.fork`."""
        with self._open():
            head = self._find(name).head
            if new_name in self._sessions:
                raise taken(new_name)
            if at is not None and at not in self._ids(head):
                raise not_its_own(name, at, head=head)
            self._point(new_name, head if at is None else at)

    def forget(self, name: str) -> None:
        """Deletes a session; see `StateStore.forget`."""
        with self._open():
            head = self._find(name).head
            heirs = self._heirs(name)
            mine = self._ids(head) | {s.id for s in self._snapshots.values() if s.session == name}
            del self._sessions[name]
            self._delete(mine - heirs.keys())
            for id in mine & heirs.keys():
                if self._snapshots[id].session == name:
                    self._snapshots[id] = replace(self._snapshots[id], session=heirs[id])

    def prune(self, name: str, *, keep: int) -> int:
        """Deletes a line's old snapshots; see `StateStore.prune`."""
        check_keep(keep)
        with self._open():
            line = [snapshot.id for snapshot in self._ancestry(self._find(name).head)]
            mine = set(line) | {s.id for s in self._snapshots.values() if s.session == name}
            return self._delete(mine - set(line[:keep]) - self._heirs(name).keys())

    def close(self) -> None:
        """Ends the store; see `StateStore.close`."""
        self._closed = True

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise closed()
            yield

    def _find(self, name: str) -> _Session:
        if name not in self._sessions:
            raise unknown_session(name)
        return self._sessions[name]

    def _get(self, id: str) -> Snapshot:
        if id not in self._snapshots:
            raise unknown_snapshot(id)
        return self._snapshots[id]

    def _info(self, name: str) -> SessionInfo:
        session = self._sessions[name]
        head = self._snapshots[session.head] if session.head is not None else None
        return SessionInfo(
            name=name,
            head=session.head,
            fingerprint=head.fingerprint if head else None,
            created_at=session.created_at,
            updated_at=session.updated_at,
            turns=head.turn if head else 0,
            messages=head.messages if head else 0,
            state_bytes=len(head.state) if head else 0,
        )

    def _point(self, name: str, head: str | None) -> None:
        now = datetime.now(UTC)
        session = self._sessions.setdefault(name, _Session(head, now, now))
        session.head, session.updated_at = head, now

    def _ancestry(self, head: str | None) -> Iterator[Snapshot]:
        """The line of `head`, newest first."""
        while head is not None:
            snapshot = self._get(head)
            yield snapshot
            head = snapshot.parent

    def _ids(self, head: str | None) -> set[str]:
        return {snapshot.id for snapshot in self._ancestry(head)}

    def _heirs(self, name: str) -> dict[str, str]:
        """The snapshots that other sessions' lines need, each with one that does."""
        others = ((other, session.head) for other, session in self._sessions.items() if other != name)
        return {snapshot.id: other for other, head in others for snapshot in self._ancestry(head)}

    def _drop_text(self, name: str, head: str, before: int) -> None:
        old = [s for s in self._ancestry(head) if s.start < before and any(_has_text(e) for e in s.entries)]
        needed = self._heirs(name) if old else {}
        for snapshot in old:
            if snapshot.id not in needed:
                entries = tuple(
                    replace(entry, text=None) if position < before else entry
                    for position, entry in enumerate(snapshot.entries, snapshot.start)
                )
                self._snapshots[snapshot.id] = replace(snapshot, entries=entries)

    def _delete(self, ids: set[str]) -> int:
        for id in ids:
            del self._snapshots[id]
        for snapshot in self._snapshots.values():
            if snapshot.parent in ids:
                self._snapshots[snapshot.id] = replace(snapshot, parent=None)
        return len(ids)


def _has_text(entry: Entry) -> bool:
    return entry.text is not None
