"""Finding what a command names: stores, sessions, snapshots. Nothing that is missing is created."""

import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_agents.cli.console import count
from deltamem_agents.errors import SessionError, SessionNotFoundError, StoreError, did_you_mean

if TYPE_CHECKING:
    from deltamem_agents.store import SessionInfo, Snapshot, StateStore

SHORT = 8
MEANT = 1000
"""So many names, at most, are looked through for the one that was meant."""


def open_existing(spec: str | None) -> "StateStore":
    """Opens a store, but creates none where one was named.

    Raises:
        StoreError: there is none, or it cannot be opened.
    """
    from deltamem_agents.store import open_store

    if spec is not None and "://" not in spec and not Path(spec).expanduser().exists():
        raise StoreError(f"there is no store at {spec}: expected a SQLite file or a database URL; check --store")
    return open_store(spec)


def store_name(spec: str | None) -> str:
    """Which store that is, for people: a file, a URL without its password, the default one by its path."""
    from sqlalchemy import make_url

    from deltamem_agents.store.database import without_password
    from deltamem_agents.store.opening import default_path

    if spec is None:
        return home(default_path())
    return without_password(make_url(spec)) if "://" in spec else spec


def store_option(spec: str | None) -> str:
    """What names the store again in a command that a message tells, passwords left out."""
    return "" if spec is None else f" --store {shlex.quote(store_name(spec))}"


def find_session(store: "StateStore", name: str, spec: str | None) -> "SessionInfo":
    """A session by its name.

    Args:
        store: where it is.
        name: the name.
        spec: what the store was named by, which errors repeat.

    Raises:
        SessionNotFoundError: there is none.
    """
    info = store.session(name)
    if info is None:
        near = did_you_mean(name, (info.name for info in store.sessions(limit=MEANT)), show=repr)
        raise SessionNotFoundError(
            f"there is no session {name!r} in this store: see `deltamem sessions list{store_option(spec)}`{near}"
        )
    return info


def find_snapshot(store: "StateStore", name: str, prefix: str, spec: str | None) -> "Snapshot":
    """The one snapshot in a session's log whose id is `prefix`, or else starts with it.

    Args:
        store: where it is.
        name: the session.
        prefix: the id, or its beginning.
        spec: what the store was named by, which errors repeat.

    Raises:
        SessionError: there is none, or more than one.
    """
    log = store.log(name)
    found = [s for s in log if s.id == prefix] or [s for s in log if prefix and s.id.startswith(prefix)]
    if not found:
        raise SessionError(
            f"session {name!r} has no snapshot {prefix!r}: it was pruned, or is another session's; "
            f"see `deltamem sessions log {shlex.quote(name)}{store_option(spec)}`"
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


def home(path: Path) -> str:
    """A path, from ~ if it is in the user's folder."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)
