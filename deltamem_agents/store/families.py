"""Locks of families in PostgreSQL: the trees of snapshots that forks have grown, each from one first turn.

Whoever changes a session holds its lock, so sessions that share nothing never wait for each other. But sessions that
were forked share snapshots, and one may be about to delete what another begins to need. So whoever deletes holds the
locks of the families alone, and whoever adds to a family, or moves a head in, into or out of it, shares its lock.
Sessions come before families, each in order: nobody waits in a circle. All locks end with their transaction, and leave
nothing on a connection that a pgbouncer lends on. In SQLite, where a writing transaction is alone, there are none.
"""

from collections.abc import Callable

from sqlalchemy import CompoundSelect, Connection, Function, func, select

from deltamem_agents.store.tables import snapshots

_SEED = 0x66616D69
"""Of advisory locks: whoever uses the database shares their numbers."""


def share_families(connection: Connection, *ids: str | None) -> dict[str | None, str]:
    """Keeps the families of these snapshots from being deleted from; gives each one's family, if there is such a one.

    A snapshot may have gone by the time that the lock is there: look again.
    """
    if connection.dialect.name != "postgresql":
        return {}
    wanted = select(snapshots.c.id, snapshots.c.root).where(snapshots.c.id.in_({id for id in ids if id is not None}))
    families: dict[str | None, str] = {row.id: row.root for row in connection.execute(wanted)}
    _lock(connection, func.pg_advisory_xact_lock_shared, set(families.values()))
    return families


def hold_families(connection: Connection, ids: CompoundSelect[tuple[str]]) -> None:
    """Keeps everybody else from changing the families of these snapshots."""
    if connection.dialect.name != "postgresql":
        return
    roots = connection.scalars(select(snapshots.c.root).where(snapshots.c.id.in_(ids)).distinct())
    _lock(connection, func.pg_advisory_xact_lock, {str(root) for root in roots})


def _lock(connection: Connection, lock: Callable[..., Function[object]], roots: set[str]) -> None:
    for root in sorted(roots):
        connection.execute(select(lock(func.hashtextextended(root, _SEED))))
