"""Finding what a command names: stores, sessions, snapshots. Nothing that is missing is created."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_agents.cli.console import count
from deltamem_agents.errors import SessionError, SessionNotFoundError, StoreError

if TYPE_CHECKING:
    from deltamem_agents.store import SessionInfo, Snapshot, StateStore

SHORT = 8


def open_existing(spec: str | None) -> "StateStore":
    """Opens a store, but creates none where one was named.

    Raises:
        StoreError: there is none, or it cannot be opened.
    """
    from deltamem_agents.store import open_store

    if spec is not None and "://" not in spec and not Path(spec).expanduser().exists():
        raise StoreError(f"there is no store at {spec}: expected a SQLite file or a database URL; check --store")
    return open_store(spec)


def find_session(store: "StateStore", name: str) -> "SessionInfo":
    """A session by its name.

    Raises:
        SessionNotFoundError: there is none.
    """
    info = store.session(name)
    if info is None:
        raise SessionNotFoundError(f"there is no session {name!r} in this store: see `deltamem sessions list`")
    return info


def find_snapshot(store: "StateStore", name: str, prefix: str) -> "Snapshot":
    """The one snapshot in a session's log whose id is `prefix`, or else starts with it.

    Raises:
        SessionError: there is none, or more than one.
    """
    log = store.log(name)
    found = [s for s in log if s.id == prefix] or [s for s in log if prefix and s.id.startswith(prefix)]
    if not found:
        raise SessionError(
            f"session {name!r} has no snapshot {prefix!r}: it was pruned, or is another session's; "
            f"see `deltamem sessions log {name}`"
        )
    if len(found) > 1:
        some = ", ".join(s.id[: len(prefix) + SHORT] for s in found[:4])
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise SessionError(f"{prefix!r} may be any of {len(found)} snapshots, {some}{more}: give more of the id")
    return found[0]


def short(id: str) -> str:
    """The beginning of a snapshot's id, enough to name it."""
    return id[:SHORT]


def length(info: "SessionInfo") -> str:
    """How long a session is: "3 turns, 5 messages"."""
    return f"{count(info.turns, 'turn')}, {count(info.messages, 'message')}"


def local(time: datetime) -> str:
    """A time as clocks here show it."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}"
