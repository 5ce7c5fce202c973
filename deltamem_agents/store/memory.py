"""A store in this process's memory: for tests and throw-away sessions, and the plain meaning of the contract."""

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from deltamem_agents.store.base import StateStore
from deltamem_agents.store.checks import (
    Place,
    check_head,
    check_keep,
    check_limit,
    check_line,
    closed,
    needed,
    not_its_own,
    taken,
    taken_id,
    unknown_session,
    unknown_snapshot,
)
from deltamem_agents.store.records import SessionInfo, Snapshot, age


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

    def sessions(self, *, prefix: str = "", after: str | None = None, limit: int | None = None) -> list[SessionInfo]:
        """Lists sessions; see `StateStore.sessions`."""
        check_limit(limit)
        with self._open():
            names = [name for name in sorted(self._sessions) if name.startswith(prefix)]
            rest = names if after is None else [name for name in names if name > after]
            return [self._info(name) for name in rest[:limit]]

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

    def thread(self, head: str, thread: str, *, last: int) -> list[Snapshot]:
        """Lists a thread's newest turns; see `StateStore.thread`."""
        with self._open():
            newest_first: list[Snapshot] = []
            for snapshot in self._ancestry(head):
                if last <= 0:
                    break
                if snapshot.thread == thread:
                    newest_first.append(replace(snapshot, state=b""))
                    last -= len(snapshot.entries)
            return newest_first[::-1]

    def find(self, name: str, message_ids: Collection[str]) -> dict[str, Snapshot]:
        """Finds messages by their ids; see `StateStore.find`."""
        with self._open():
            if name not in self._sessions:
                return {}
            line = list(self._ancestry(self._sessions[name].head))
            wanted, found = set(message_ids), {}
            for snapshot in (*sorted(self._others(name), key=age), *line[::-1]):  # the best come last
                for entry in snapshot.entries:
                    if entry.message_id in wanted:
                        found[entry.message_id] = replace(snapshot, state=b"")
            return found

    def absorbed(self, head: str, key: str) -> str | None:
        """Finds an absorption; see `StateStore.absorbed`."""
        with self._open():
            return next((snapshot.id for snapshot in self._ancestry(head) if snapshot.key == key), None)

    def log(self, name: str) -> list[Snapshot]:
        """Lists a session's own snapshots; see `StateStore.log`."""
        with self._open():
            mine = (*self._ancestry(self._find(name).head), *self._others(name))
            return [replace(snapshot, state=b"") for snapshot in sorted(mine, key=age)]

    def commit(self, name: str, snapshot: Snapshot, *, expected: str | None) -> None:
        """Adds a snapshot and moves the head to it; see `StateStore.commit`."""
        self.add_line(name, [snapshot], expected=expected)

    def add_line(self, name: str, line: Sequence[Snapshot], *, expected: str | None) -> None:
        """Adds snapshots and moves the head to the last; see `StateStore.add_line`."""
        with self._open():
            session = self._sessions.get(name)
            check_head(name, found=session.head if session else None, expected=expected)
            check_line(name, line, self._place(line))
            new: dict[str, Snapshot] = {}
            for snapshot in line:
                if snapshot.id in self._snapshots or snapshot.id in new:
                    raise taken_id(snapshot.id)
                new[snapshot.id] = replace(snapshot, created_at=snapshot.created_at.astimezone(UTC))
            self._snapshots |= new
            self._point(name, line[-1].id)

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
            mine = self._ids(head) | {s.id for s in self._others(name)}
            del self._sessions[name]
            self._delete(mine - heirs.keys())
            for id in mine & heirs.keys():
                if self._snapshots[id].session == name:
                    self._snapshots[id] = replace(self._snapshots[id], session=heirs[id])

    def through(self, id: str) -> list[str]:
        """Lists the sessions that go through a snapshot; see `StateStore.through`."""
        with self._open():
            return [name for name in sorted(self._sessions) if id in self._ids(self._sessions[name].head)]

    def erase(self, name: str, ids: Collection[str]) -> int:
        """Deletes what a session has left; see `StateStore.erase`."""
        with self._open():
            own = self._ids(self._find(name).head) | {s.id for s in self._others(name)}
            for id in ids:
                if id not in own:
                    raise not_its_own(name, id, head=self._sessions[name].head)
                if users := self.through(id):
                    raise needed(id, users[0])
            return self._delete({id for id in self._snapshots if not self._ids(id).isdisjoint(ids)})

    def prune(self, name: str, *, keep: int) -> int:
        """Deletes a line's old snapshots; see `StateStore.prune`."""
        check_keep(keep)
        with self._open():
            line = list(self._ancestry(self._find(name).head))
            others = sorted(self._others(name), key=age, reverse=True)
            old = {snapshot.id for snapshot in (*line[keep:], *others[keep:])}
            return self._delete(old - self._heirs(name).keys())

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

    def _others(self, name: str) -> list[Snapshot]:
        """What the session owns on lines that it has left."""
        line = self._ids(self._sessions[name].head)
        return [s for s in self._snapshots.values() if s.session == name and s.id not in line]

    def _place(self, line: Sequence[Snapshot]) -> Place | None:
        """Where a new line would start."""
        parent = line[0].parent if line else None
        if parent is None or parent not in self._snapshots:
            return None
        threads: dict[str, int] = {}
        for snapshot in self._ancestry(parent):
            threads.setdefault(snapshot.thread, snapshot.thread_messages)
        last = self._snapshots[parent]
        return Place(turn=last.turn, messages=last.messages, threads=threads, pruned=snapshot.start)

    def _heirs(self, name: str) -> dict[str, str]:
        """The snapshots that other sessions' lines need, each with the first by name that does."""
        others = sorted(self._sessions.keys() - {name}, reverse=True)
        return {snapshot.id: other for other in others for snapshot in self._ancestry(self._sessions[other].head)}

    def _delete(self, ids: set[str]) -> int:
        for id in ids:
            del self._snapshots[id]
        for snapshot in self._snapshots.values():
            if snapshot.parent in ids:
                self._snapshots[snapshot.id] = replace(snapshot, parent=None)
        return len(ids)
