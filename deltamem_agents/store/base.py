"""What a store promises, whichever way it keeps its data, and the errors that all of them raise alike."""

from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from deltamem_agents.errors import ConflictError, SessionError, SessionNotFoundError, StoreError
from deltamem_agents.store.records import SessionInfo, Snapshot


@runtime_checkable
class StateStore(Protocol):
    """Snapshots as commits, sessions as branches: a session's line is its head and the head's ancestors.

    Snapshots never change, but for dropped text. Every method is atomic and safe to call from several threads; a method
    that raises has changed nothing. Times are aware and UTC.

    Raises:
        StoreError: from every method, if the data cannot be read or written, or the store is closed.
    """

    def session(self, name: str) -> SessionInfo | None:
        """Looks a session up; None if there is none of this name."""
        ...

    def sessions(self, *, prefix: str = "") -> list[SessionInfo]:
        """Lists the sessions whose names start with `prefix`, sorted by name."""
        ...

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

    def boundary(self, head: str, position: int) -> Snapshot | None:
        """Loads the newest of `head` and its ancestors that ends at or before message `position`.

        Returns:
            The snapshot with its state, or None if the line starts after `position`: there the state is still zero.

        Raises:
            StoreError: if `head` is not in the store, or the snapshot was pruned away.
        """
        ...

    def commit(self, name: str, snapshot: Snapshot, *, expected: str | None, drop_text_before: int = 0) -> None:
        """Adds a snapshot and moves the session's head to it, if the head is still the expected one.

        A session that does not exist counts as one without a head and is created. The parent need not be the expected
        head: another reply to an old message starts a new line, and the old one stays until it is pruned.

        Args:
            name: The session.
            snapshot: A new snapshot that `name` owns, with its state and entries.
            expected: The head that the turn started from.
            drop_text_before: Entries of the session's line at positions below this one (counted from 0) lose their text
                for good, unless another session's line holds them too.

        Raises:
            ConflictError: if the head is another one.
            StoreError: if the snapshot does not continue its parent, or its id is taken.
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

        Snapshots that stay pass to a session that needs them.

        Raises:
            SessionNotFoundError: if the session does not exist.
        """
        ...

    def prune(self, name: str, *, keep: int) -> int:
        """Deletes all but the newest `keep` snapshots of the line, and the session's snapshots that are on no line.

        What another session's line needs stays. The oldest snapshot kept has no parent then; its counts stay.

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


def check_child(name: str, snapshot: Snapshot, parent: tuple[int, int] | None) -> None:
    """Refuses a snapshot that does not continue its parent, given as (turn, messages), or that `name` does not own."""
    if snapshot.session != name:
        raise StoreError(
            f"snapshot {snapshot.id!r} belongs to session {snapshot.session!r}, not to {name!r}: set `session`"
        )
    if snapshot.created_at.tzinfo is None:
        raise StoreError(f"snapshot {snapshot.id!r} has no time zone in created_at {snapshot.created_at}: use UTC")
    if snapshot.parent is None:
        if snapshot.turn < 1 or snapshot.start < 0:
            raise StoreError(
                f"snapshot {snapshot.id!r} starts a line at turn {snapshot.turn} with {snapshot.messages} messages, "
                f"{len(snapshot.entries)} of them new: expected turn 1 or later, and no fewer messages than new ones"
            )
        return
    if parent is None:
        raise StoreError(f"snapshot {snapshot.id!r} has an unknown parent {snapshot.parent!r}: commit the parent first")
    if (snapshot.turn - 1, snapshot.start) != parent:
        raise StoreError(
            f"snapshot {snapshot.id!r} is turn {snapshot.turn} and starts at message {snapshot.start}, but its parent "
            f"{snapshot.parent!r} is turn {parent[0]} with {parent[1]} messages: count on from the parent"
        )


def check_head(name: str, *, found: str | None, expected: str | None) -> None:
    """Refuses to move a head that somebody else has moved."""
    if found != expected:
        raise ConflictError(
            f"session {name!r} has head {found!r}, expected {expected!r}: another turn came first; replay on top of it"
        )


def check_keep(keep: int) -> None:
    """Refuses to prune a session's head away."""
    if keep < 1:
        raise SessionError(f"cannot keep {keep} snapshots: keep at least 1, or use `forget` to delete the session")


def closed() -> StoreError:
    """A store that was used after `close`."""
    return StoreError("this store is closed: open it again to go on")


def not_its_own(name: str, snapshot: str, *, head: str | None) -> SessionError:
    """A snapshot that is none of the session's: maybe somebody else's."""
    return SessionError(
        f"snapshot {snapshot!r} is not one of session {name!r} (head {head!r}): take one from its own line"
    )


def pruned(head: str, position: int, *, start: int) -> StoreError:
    """A boundary that was on the line once."""
    return StoreError(
        f"the state at message {position} of {head!r} was pruned: the line is kept from message {start} on; "
        "start at a snapshot that is kept, and prune less next time"
    )


def taken(name: str) -> SessionError:
    """A new session whose name is in use."""
    return SessionError(f"session {name!r} exists already: choose another name, or `forget` it first")


def unknown_session(name: str) -> SessionNotFoundError:
    """A session that is not in the store."""
    return SessionNotFoundError(f"session {name!r} is not in this store: check the name, or list `sessions()`")


def unknown_snapshot(id: str) -> StoreError:
    """A snapshot that is not in the store."""
    return StoreError(f"snapshot {id!r} is not in this store: it was pruned, forgotten, or made elsewhere")
