"""`deltamem sessions rebuild --all`: every memory of another adapter, one after the other, while somebody watches."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from deltamem_agents.cli.console import count, err, note
from deltamem_agents.cli.progress import Shown, duration
from deltamem_agents.errors import ConflictError, SessionError, SessionNotFoundError

if TYPE_CHECKING:
    from deltamem_agents.engine import DeltaMemEngine
    from deltamem_agents.store import SessionInfo, StateStore

PAGE = 1000
ATTEMPTS = 5
"""How often a session is begun again that goes on meanwhile, before it is left for the next time."""


def rebuild_all(engine: "DeltaMemEngine", *, prefix: str = "") -> None:
    """Rebuilds the sessions whose memories are not the engine's, in order of their names.

    Each is rebuilt in one transaction and has the engine's fingerprint then, so a run that was stopped is gone on with
    by another one: what is done already is passed over.

    Args:
        engine: whose memories they become.
        prefix: only sessions whose names begin so.

    Raises:
        typer.Exit: 1 where some could not be rebuilt; each has been named.
    """
    done = turns = 0
    skipped = list[str]()
    total = engine.store.count(prefix=prefix)
    begun = time.monotonic()
    with Shown(err) as shown:
        for seen, info in enumerate(_pages(engine.store, prefix), 1):
            if info.head is not None and info.fingerprint != engine.fingerprint:
                try:
                    turns += _rebuilt(engine, info.name)
                    done += 1
                except SessionNotFoundError:  # forgotten meanwhile
                    pass
                except (SessionError, ConflictError) as error:
                    skipped.append(info.name)
                    note(f"Not rebuilt: {error}")
            left = (time.monotonic() - begun) / seen * max(0, total - seen)
            shown.show(f"{seen:,}/{total:,} sessions  {done:,} rebuilt  {duration(left)} left")
    note(f"Rebuilt: {count(done, 'session')}, {count(turns, 'turn')}; the others were of this adapter already.")
    if skipped:
        note(f"Not rebuilt: {count(len(skipped), 'session')}.")
        raise typer.Exit(1)


def _pages(store: "StateStore", prefix: str) -> "Iterator[SessionInfo]":
    """All sessions, by pages, whatever comes and goes meanwhile."""
    after: str | None = None
    while page := store.sessions(prefix=prefix, after=after, limit=PAGE):
        yield from page
        after = page[-1].name


def _rebuilt(engine: "DeltaMemEngine", name: str) -> int:
    for _ in range(ATTEMPTS - 1):
        try:
            return engine.session(name).rebuild()
        except ConflictError:  # it went on meanwhile, where its old adapter is served
            continue
    return engine.session(name).rebuild()
