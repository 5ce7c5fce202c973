"""What a store promises, whichever way it keeps its data."""

from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from deltamem_agents.store.records import SessionInfo, Snapshot


@runtime_checkable
class StateStore(Protocol):
    """Snapshots as commits, sessions as branches: a session's line is its head and the head's ancestors.

    A session's own snapshots are those on its line, and those that it owns on lines it has left. Snapshots never
    change, and their texts live exactly as long as they do; when others are deleted, one may only lose its parent or
    pass to another owner. Every method is atomic and safe to call from several threads; a method that raises has
    changed nothing. Times are aware and UTC.

    Raises:
        StoreError: from every method, if the data cannot be read or written, or the store is closed.
    """

    def session(self, name: str) -> SessionInfo | None:
        """Looks a session up; None if there is none of this name."""
        ...

    def sessions(self, *, prefix: str = "", after: str | None = None, limit: int | None = None) -> list[SessionInfo]:
        """Lists the sessions whose names start with `prefix`, sorted by name (by code point).

        Args:
            prefix: The names' beginning.
            after: Only names that come after this one: the last name of one page gives the next page, whatever has
                been created or deleted meanwhile. It need not exist.
            limit: At most so many; by default all.

        Raises:
            SessionError: if `limit` is not positive.
        """
        ...

    def count(self, *, prefix: str = "") -> int:
        """Counts the sessions whose names start with `prefix`."""
        return len(self.sessions(prefix=prefix))

    def snapshot(self, id: str) -> Snapshot:
        """Loads a snapshot with its state and entries.

        Raises:
            StoreError: if it is not in the store.
        """
        ...

    def line(self, head: str, *, since: int = 0) -> list[Snapshot]:
        """Lists `head` and its ancestors that end after message `since`, oldest first, entries with, states without.

        The cost grows with what is returned, not with the length of the line.

        Raises:
            StoreError: if `head` is not in the store.
        """
        ...

    def thread(self, head: str, thread: str, *, last: int) -> list[Snapshot]:
        """Lists turns of one thread on the line of `head`, oldest first, entries with, states without.

        They are the newest ones that together hold at least `last` messages, or all there are; none if `last` is 0.

        Raises:
            StoreError: if `head` is not in the store.
        """
        ...

    def find(self, name: str, message_ids: Collection[str]) -> dict[str, Snapshot]:
        """Finds messages by the ids that the caller's framework gave them, among the session's own snapshots.

        Returns:
            For each id that one of them holds, that snapshot, entries with, state without; of several, the newest on
            the session's line, or else the newest. Nothing for a session that does not exist.
        """
        ...

    def absorbed(self, head: str, key: str) -> str | None:
        """Finds the snapshot with this key on the line of `head`; of several, the newest.

        Raises:
            StoreError: if `head` is not in the store.
        """
        ...

    def log(self, name: str) -> list[Snapshot]:
        """Lists the session's own snapshots by time and turn, oldest first, entries with, states without.

        Raises:
            SessionNotFoundError: if the session does not exist.
        """
        ...

    def commit(self, name: str, snapshot: Snapshot, *, expected: str | None) -> None:
        """Adds a snapshot and moves the session's head to it, if the head is still the expected one.

        A session that does not exist counts as one without a head and is created. The parent need not be the expected
        head: another reply to an old message starts a new line, and the old one stays until it is pruned.

        Args:
            name: The session.
            snapshot: A new snapshot that `name` owns, with its state and entries.
            expected: The head that the turn started from.

        Raises:
            ConflictError: if the head is another one.
            StoreError: if the snapshot does not continue its parent, or its id is taken.
        """
        ...

    def add_line(self, name: str, line: Sequence[Snapshot], *, expected: str | None) -> None:
        """Adds a chain of snapshots, and moves the session's head to the last, if it is still the expected one.

        Args:
            name: The session, created if need be.
            line: New snapshots that `name` owns, each the parent of the next, with states and entries. The first may
                have no parent and any counts, as a pruned line starts.
            expected: The head that the caller has seen.

        Raises:
            ConflictError: if the head is another one.
            StoreError: if `line` is empty, a snapshot does not continue its parent, or an id is taken.
        """
        ...

    def move_head(self, name: str, to: str | None, *, expected: str | None) -> None:
        """Moves the session's head, if it is still the expected one, to a snapshot of its line or one that it owns.

        Raises:
            ConflictError: if the head is another one.
            SessionError: if `to` is not this session's.
            SessionNotFoundError: if the session does not exist.
        """
        ...

    def fork(self, name: str, new_name: str, *, at: str | None = None) -> None:
        """Creates a session that points at a snapshot of another one's line; by default its head. Copies nothing.

        Raises:
            SessionError: if `new_name` exists, or `at` is not on the line.
            SessionNotFoundError: if `name` does not exist.
        """
        ...

    def forget(self, name: str) -> None:
        """Deletes the session, and for good every snapshot, entry and text that no other session's line needs.

        Snapshots that stay pass to the first session, by name, that needs them.

        Raises:
            SessionNotFoundError: if the session does not exist.
        """
        ...

    def through(self, id: str) -> list[str]:
        """Lists the sessions whose lines go through a snapshot, by name; none if it is not in the store."""
        ...

    def erase(self, name: str, ids: Collection[str]) -> int:
        """Deletes for good snapshots that the session has left, and all that continues them, with their texts.

        Returns:
            How many snapshots were deleted.

        Raises:
            SessionError: if one is not the session's own, or a session's line goes through one: this one's or another.
            SessionNotFoundError: if the session does not exist.
        """
        ...

    def prune(self, name: str, *, keep: int) -> int:
        """Deletes old snapshots: keeps the newest `keep` of the line, and the newest `keep` of the session's others.

        The others, on lines that it has left, go by time. What another session's line needs stays. A snapshot whose
        parent is deleted has no parent then; its counts stay.

        Returns:
            How many snapshots were deleted.

        Raises:
            SessionError: if `keep` is not positive.
            SessionNotFoundError: if the session does not exist.
        """
        ...

    def close(self) -> None:
        """Releases what the store holds open; closing twice is fine."""
        ...

    def __enter__(self) -> Self:
        """Returns the store, for `with`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the store."""
        self.close()
