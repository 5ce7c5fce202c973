"""Deleting snapshots from SQL, with all that is theirs."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, select

from deltamem_agents.store.checks import needed, not_its_own
from deltamem_agents.store.lines import ancestry, below, heirs, own, through
from deltamem_agents.store.tables import snapshots


def prune(connection: Connection, name: str, head: str | None, *, keep: int) -> int:
    """Deletes what is older than the newest `keep` on the line and off it, and counts it: see `StateStore.prune`."""
    above = ancestry(head)
    line = list(connection.scalars(select(above.c.id).order_by(above.c.turn.desc())))
    columns = (snapshots.c.created_at, snapshots.c.turn, snapshots.c.id)
    rows = connection.execute(select(*columns).where(snapshots.c.session == name))
    # Sorted here, not there: texts have no time zones, and databases have collations.
    owned = sorted(((datetime.fromisoformat(row.created_at), row.turn, row.id) for row in rows), reverse=True)
    on_line = set(line)
    others = [id for *_, id in owned if id not in on_line]
    kept = {*line[:keep], *others[:keep]}
    owners = heirs(connection, name, own(name, head))
    gone = [id for id, heir in owners.items() if heir is None and id not in kept]
    delete_snapshots(connection, gone)
    return len(gone)


def erase(connection: Connection, name: str, head: str | None, ids: Collection[str]) -> list[str]:
    """Deletes snapshots that no session's line goes through, and all below them: see `StateStore.erase`. Gives all."""
    owned: set[str] = set(connection.scalars(own(name, head)))
    gone = set[str]()
    for id in ids:
        if id not in owned:
            raise not_its_own(name, id, head=head)
        if users := through(connection, id):
            raise needed(id, users[0])
        gone.update(connection.scalars(select(below(id).c.id)))
    delete_snapshots(connection, sorted(gone))
    return sorted(gone)


def delete_snapshots(connection: Connection, ids: list[str]) -> None:
    """Deletes snapshots; the database deletes their entries and makes their children start their lines."""
    if ids:
        connection.execute(delete(snapshots).where(snapshots.c.id == bindparam("gone")), [{"gone": id} for id in ids])
