"""Lines in SQL: a head and its ancestors, and which of them other sessions' lines go through."""

from collections import defaultdict

from sqlalchemy import CTE, CompoundSelect, Connection, Select, case, func, literal, select, union

from deltamem_agents.store.tables import entries, sessions, snapshots


def ancestry(head: str | None, *, since: int = -1) -> CTE:
    """`head` and those of its ancestors that end after message `since`, as (id, parent, turn, messages).

    Message counts never fall along a line, so the walk ends at the first ancestor that ends earlier.
    """
    columns = (snapshots.c.id, snapshots.c.parent, snapshots.c.turn, snapshots.c.messages)
    line = select(*columns).where(snapshots.c.id == head).cte("line", recursive=True)
    older = select(*columns).join(line, snapshots.c.id == line.c.parent).where(snapshots.c.messages > since)
    return line.union_all(older)


def of_thread(head: str | None, thread: str, *, last: int) -> Select[tuple[str]]:
    """The ids of a thread's newest turns on the line of `head` that together hold at least `last` messages, or of all.

    The walk ends where they do, and in any case at the depth of the thread's first turn in the store.
    """
    held = select(func.count()).select_from(entries).where(entries.c.snapshot == snapshots.c.id)
    mine = case((snapshots.c.thread == thread, held.correlate(snapshots).scalar_subquery()), else_=0)
    same = snapshots.alias("same")
    first = select(func.min(same.c.turn)).where(same.c.thread == thread).scalar_subquery()
    columns = (snapshots.c.id, snapshots.c.parent, snapshots.c.turn, snapshots.c.thread)
    newest = select(*columns, (literal(last) - mine).label("wanted")).where(snapshots.c.id == head)
    line = newest.cte("threads_line", recursive=True)
    older = select(*columns, line.c.wanted - mine).join(line, snapshots.c.id == line.c.parent)
    line = line.union_all(older.where(line.c.wanted > 0, snapshots.c.turn >= first))
    return select(line.c.id).where(line.c.thread == thread)


def own(name: str, head: str | None) -> CompoundSelect[tuple[str]]:
    """The ids of a session's own snapshots: its line, and what it owns besides."""
    # No OR: for that PostgreSQL would look at every snapshot there is.
    return union(select(snapshots.c.id).where(snapshots.c.session == name), select(ancestry(head).c.id))


def on_line(connection: Connection, head: str | None, id: str) -> bool:
    """Whether `id` is `head` or an ancestor of it."""
    line = ancestry(head)
    return connection.scalar(select(literal(1)).where(line.c.id == id)) is not None


def below(id: str) -> CTE:
    """A snapshot and all that continue it, as (id)."""
    found = select(snapshots.c.id).where(snapshots.c.id == id).cte("below", recursive=True)
    return found.union_all(select(snapshots.c.id).join(found, snapshots.c.parent == found.c.id))


def heir(connection: Connection, name: str, id: str) -> str | None:
    """The first by name of the sessions but `name` whose line goes through the snapshot: heads are it or below it."""
    return next((other for other in through(connection, id) if other != name), None)


def through(connection: Connection, id: str) -> list[str]:
    """The sessions whose line goes through the snapshot, by name: their heads are it or below it."""
    line = below(id)
    return sorted(connection.scalars(select(sessions.c.name).join(line, sessions.c.head == line.c.id)))


def heirs(
    connection: Connection, name: str, ids: CompoundSelect[tuple[str]], *, first: bool = False
) -> dict[str, str | None]:
    """For each of the snapshots, newest first: a session other than `name` whose line goes through it, or None.

    Any such session, or the first by name, which takes longer.
    """
    newest_first = select(snapshots.c.id).where(snapshots.c.id.in_(ids)).order_by(snapshots.c.turn.desc())
    others = select(sessions.c.head, sessions.c.name).where(sessions.c.head.in_(ids), sessions.c.name != name)
    heads: defaultdict[str, list[str]] = defaultdict(list)
    for row in connection.execute(others):
        heads[row.head].append(row.name)
    children: defaultdict[str, list[str]] = defaultdict(list)
    for row in connection.execute(select(snapshots.c.parent, snapshots.c.id).where(snapshots.c.parent.in_(ids))):
        children[row.parent].append(row.id)

    found: dict[str, str | None] = {}
    for id in connection.scalars(newest_first).all():
        names = heads[id]
        for child in sorted(children[id], key=lambda child: child not in found):  # what is known already comes first
            if names and not first:
                break
            other = found[child] if child in found else heir(connection, name, child)
            names += [other] if other is not None else []
        found[id] = min(names, default=None)
    return found
