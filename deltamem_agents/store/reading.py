"""Reading snapshots from SQL: whole ones, and which of them hold a message, carry a key, or come before a new one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice

from sqlalchemy import ColumnElement, CompoundSelect, Connection, Select, func, select

from deltamem_agents.store.checks import Place, unknown_snapshot
from deltamem_agents.store.lines import ancestry, of_thread, own
from deltamem_agents.store.records import Snapshot, age
from deltamem_agents.store.tables import TURNS, entries, sessions, snapshots, to_snapshots

_MANY = 500
"""So many values go into one statement: databases limit the parameters of one."""
_COMMON = 1000
"""Ids that so many messages share are no uuids but something like "1", which any number of sessions may use."""


def load(connection: Connection, id: str) -> Snapshot:
    """Loads a snapshot with its state."""
    found = to_snapshots(connection.execute(TURNS.where(snapshots.c.id == id)))
    state = connection.scalar(select(snapshots.c.state).where(snapshots.c.id == id))
    if not found or state is None:
        raise unknown_snapshot(id)
    return replace(found[0], state=state)


def kept(connection: Connection, snapshot: Snapshot) -> bool:
    """Whether this very snapshot is in the store already."""
    made = connection.scalar(select(snapshots.c.created_at).where(snapshots.c.id == snapshot.id))
    return made is not None and datetime.fromisoformat(made) == snapshot.created_at


def turns_of(
    connection: Connection, ids: Select[tuple[str]] | CompoundSelect[tuple[str]] | list[str]
) -> list[Snapshot]:
    """Loads snapshots without their states, sorted by turn."""
    return to_snapshots(connection.execute(TURNS.where(snapshots.c.id.in_(ids))))


def owner_of(connection: Connection, id: str) -> str:
    """The session that owns a snapshot."""
    owner = connection.scalar(select(snapshots.c.session).where(snapshots.c.id == id))
    if owner is None:
        raise unknown_snapshot(id)
    return str(owner)


def require(connection: Connection, id: str) -> None:
    """Raises a StoreError if there is no such snapshot."""
    if not known(connection, [id]):
        raise unknown_snapshot(id)


def starting_with(prefix: str) -> list[ColumnElement[bool]]:
    """Which names start with a prefix, as a range that an index holds: LIKE has wildcards, and in SQLite no cases."""
    bounds = [sessions.c.name >= prefix] if prefix else []
    stem = prefix.rstrip("\U0010ffff")
    if stem:
        after = ord(stem[-1]) + 1
        end = "\ue000" if after == 0xD800 else chr(after)  # what is between them is no text
        bounds.append(sessions.c.name < stem[:-1] + end)
    return bounds


def known(connection: Connection, ids: Iterable[str]) -> list[str]:
    """Which of these snapshots there are."""
    id = snapshots.c.id
    return [found for some in _some(ids) for found in connection.scalars(select(id).where(id.in_(some)))]


def place_of(connection: Connection, line: Sequence[Snapshot]) -> Place | None:
    """Where a new line would start; None if its first snapshot has no parent there."""
    id = line[0].parent if line else None
    parent = connection.execute(select(snapshots.c.turn, snapshots.c.messages).where(snapshots.c.id == id)).first()
    if parent is None:
        return None
    threads = {}
    for thread in {snapshot.thread for snapshot in line}:
        newest = snapshots.c.id.in_(of_thread(id, thread, last=1))
        counts = select(snapshots.c.thread_messages).where(newest).order_by(snapshots.c.turn.desc()).limit(1)
        if (count := connection.scalar(counts)) is not None:
            threads[thread] = count
    lost = 0
    if any(snapshot.thread not in threads and snapshot.thread_start > 0 for snapshot in line):
        above = ancestry(id)
        first = connection.scalar(select(above.c.id).order_by(above.c.turn).limit(1))
        lost = turns_of(connection, [str(first)])[0].start
    return Place(turn=parent.turn, messages=parent.messages, threads=threads, pruned=lost)


def keyed(connection: Connection, head: str, key: str) -> str | None:
    """The newest snapshot of a line that carries the key."""
    oldest = connection.scalar(select(func.min(snapshots.c.messages)).where(snapshots.c.key == key))
    if oldest is None:
        return None
    line = ancestry(head, since=oldest - 1)
    carrying = select(snapshots.c.id).join(line, line.c.id == snapshots.c.id).where(snapshots.c.key == key)
    return connection.scalar(carrying.order_by(snapshots.c.turn.desc()).limit(1))


def find(connection: Connection, name: str, head: str | None, message_ids: set[str]) -> dict[str, Snapshot]:
    """For each message id the best of the session's own snapshots that hold it: see `StateStore.find`."""
    holders: dict[str, tuple[str, int]] = {}
    for some in _some(message_ids):
        holders |= _holders(connection, entries.c.message_id.in_(some), own(name, head))
    if not holders:
        return {}
    above = ancestry(head, since=min(messages for _, messages in holders.values()) - 1)
    line = set(connection.scalars(select(above.c.id)))
    its_own = [id for id, (owner, _) in holders.items() if owner == name or id in line]
    found = [snapshot for some in _some(its_own) for snapshot in turns_of(connection, some)]
    mine = sorted((snapshot for snapshot in found if snapshot.id in line), key=lambda snapshot: snapshot.turn)
    others = sorted((snapshot for snapshot in found if snapshot.id not in line), key=age)
    return {
        entry.message_id: snapshot
        for snapshot in (*others, *mine)  # the best come last
        for entry in snapshot.entries
        if entry.message_id in message_ids
    }


def _holders(
    connection: Connection, held: ColumnElement[bool], mine: CompoundSelect[tuple[str]]
) -> dict[str, tuple[str, int]]:
    """The snapshots that hold messages, with owner and count: all that there are, or if these are many, all of mine.

    The first costs the same however long a line is, the second however many sessions use the same ids.
    """
    columns = (snapshots.c.id, snapshots.c.session, snapshots.c.messages)
    holding = select(*columns).join(entries, entries.c.snapshot == snapshots.c.id).where(held)
    rows = connection.execute(holding.limit(_COMMON)).all()
    if len(rows) == _COMMON:
        rows = connection.execute(holding.where(snapshots.c.id.in_(mine))).all()
    return {row.id: (row.session, row.messages) for row in rows}


def _some(values: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(values)
    while some := list(islice(rest, _MANY)):
        yield some
