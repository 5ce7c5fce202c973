"""What every store refuses alike, and in which words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltamem_agents.errors import ConflictError, SessionError, SessionNotFoundError, StoreError
from deltamem_agents.store.records import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A snapshot that new ones shall follow, and what its line holds."""

    turn: int
    """Its depth."""
    messages: int
    """Messages on the line."""
    threads: Mapping[str, int]
    """Messages of each of the new snapshots' threads; of a thread that has no turn left on the line, nothing."""
    pruned: int
    """Messages that the line lost at its start, so many of which may have been of a thread that is not in `threads`."""


def check_line(name: str, line: Sequence[Snapshot], place: Place | None) -> None:
    """Refuses new snapshots that do not continue each other, or of which the first does not continue its parent.

    Args:
        name: The session that shall own them.
        line: The snapshots.
        place: Where the first one's parent is; None if it has none, or if that is not in the store.

    Raises:
        StoreError: if any of that is so.
    """
    if not line:
        raise StoreError("there are no snapshots in this line: give at least one")
    threads = dict(place.threads) if place else {}
    pruned = place.pruned if place else max(0, line[0].start)
    before: str | None = None
    for snapshot in line:
        _check_alone(name, snapshot)
        if before is not None and snapshot.parent != before:
            raise StoreError(
                f"snapshot {snapshot.id!r} has parent {snapshot.parent!r}, but comes after {before!r}: expected each "
                "to be the parent of the next; sort them, oldest first"
            )
        if snapshot.parent is not None:
            _check_child(snapshot, place)
        threads[snapshot.thread] = snapshot.thread_messages
        place = Place(turn=snapshot.turn, messages=snapshot.messages, threads=threads, pruned=pruned)
        before = snapshot.id


def _check_alone(name: str, snapshot: Snapshot) -> None:
    if snapshot.session != name:
        raise StoreError(
            f"snapshot {snapshot.id!r} belongs to session {snapshot.session!r}, not to {name!r}: set `session`"
        )
    if snapshot.created_at.tzinfo is None:
        raise StoreError(f"snapshot {snapshot.id!r} has no time zone in created_at {snapshot.created_at}: use UTC")
    if snapshot.parent is None and (snapshot.turn < 1 or snapshot.start < 0):
        raise StoreError(
            f"snapshot {snapshot.id!r} starts a line at turn {snapshot.turn} with {snapshot.messages} messages, "
            f"{len(snapshot.entries)} of them new: expected turn 1 or later, and no fewer messages than new ones"
        )
    if not 0 <= snapshot.thread_start <= snapshot.start:
        raise StoreError(
            f"snapshot {snapshot.id!r} starts at message {snapshot.thread_start} of thread {snapshot.thread!r} and at "
            f"message {snapshot.start} of its line: expected a thread to be part of the line; check thread_messages"
        )


def _check_child(snapshot: Snapshot, parent: Place | None) -> None:
    if parent is None:
        raise StoreError(f"snapshot {snapshot.id!r} has an unknown parent {snapshot.parent!r}: commit the parent first")
    if (snapshot.turn - 1, snapshot.start) != (parent.turn, parent.messages):
        raise StoreError(
            f"snapshot {snapshot.id!r} is turn {snapshot.turn} and starts at message {snapshot.start}, but its parent "
            f"{snapshot.parent!r} is turn {parent.turn} with {parent.messages} messages: count on from the parent"
        )
    known = parent.threads.get(snapshot.thread)
    least, most = (0, parent.pruned) if known is None else (known, known)
    if not least <= snapshot.thread_start <= most:
        raise StoreError(
            f"snapshot {snapshot.id!r} starts at message {snapshot.thread_start} of thread {snapshot.thread!r}, but "
            f"the line of its parent {snapshot.parent!r} has {most if least == most else f'at most {most}'} of that "
            "thread: count on from the thread's last turn"
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


def check_limit(limit: int | None) -> None:
    """Refuses pages that hold nothing."""
    if limit is not None and limit < 1:
        raise SessionError(f"limit is {limit}: expected at least 1 session on a page, or None for all of them")


def closed() -> StoreError:
    """A store that was used after `close`."""
    return StoreError("this store is closed: open it again to go on")


def needed(snapshot: str, session: str) -> SessionError:
    """A snapshot that cannot be deleted, because a session goes on from it."""
    return SessionError(
        f"snapshot {snapshot!r} cannot be deleted: the line of session {session!r} goes through it; roll that session "
        "back before it, or forget that session, and try again"
    )


def not_its_own(name: str, snapshot: str, *, head: str | None) -> SessionError:
    """A snapshot that is none of the session's: maybe somebody else's."""
    return SessionError(
        f"snapshot {snapshot!r} is not one of session {name!r} (head {head!r}): take one from its own line"
    )


def taken(name: str) -> SessionError:
    """A new session whose name is in use."""
    return SessionError(f"session {name!r} exists already: choose another name, or `forget` it first")


def taken_id(id: str) -> StoreError:
    """A new snapshot whose id is in use."""
    return StoreError(f"snapshot {id!r} is in this store already: give each turn a new id")


def unknown_session(name: str) -> SessionNotFoundError:
    """A session that is not in the store."""
    return SessionNotFoundError(f"there is no session {name!r} in this store: see sessions(), or GET /v1/sessions")


def unknown_snapshot(id: str) -> StoreError:
    """A snapshot that is not in the store."""
    return StoreError(f"snapshot {id!r} is not in this store: it was pruned, forgotten, or made elsewhere")
