"""Lines in SQL: a head and its ancestors, and which of them other sessions' lines go through."""

from collections import defaultdict

from sqlalchemy import CTE, Connection, Select, literal, select

from deltamem_agents.store.tables import sessions, snapshots


def ancestry(head: str | None, *, since: int = -1) -> CTE:
    """`head` and those of its ancestors that end after message `since`, as (id, parent, turn, messages).

    Message counts never fall along a line, so the walk ends at the first ancestor that ends earlier.
    """
    columns = (snapshots.c.id, snapshots.c.parent, snapshots.c.turn, snapshots.c.messages)
    line = select(*columns).where(snapshots.c.id == head).cte("line", recursive=True)
    older = select(*columns).join(line, snapshots.c.id == line.c.parent).where(snapshots.c.messages > since)
    return line.union_all(older)


def on_line(connection: Connection, head: str | None, id: str) -> bool:
    """Whether `id` is `head` or an ancestor of it."""
    line = ancestry(head)
    return connection.scalar(select(literal(1)).where(line.c.id == id)) is not None


def heir(connection: Connection, name: str, id: str) -> str | None:
    """A session other than `name` whose line goes through the snapshot: its head is the snapshot or a descendant."""
    below = select(snapshots.c.id).where(snapshots.c.id == id).cte("below", recursive=True)
    below = below.union_all(select(snapshots.c.id).join(below, snapshots.c.parent == below.c.id))
    other = select(sessions.c.name).join(below, sessions.c.head == below.c.id).where(sessions.c.name != name)
    return connection.scalar(other.limit(1))


def heirs(connection: Connection, name: str, ids: Select[tuple[str]]) -> dict[str, str | None]:
    """For each of the snapshots, newest first: a session other than `name` whose line goes through it, or None."""
    newest_first = select(snapshots.c.id).where(snapshots.c.id.in_(ids)).order_by(snapshots.c.turn.desc())
    others = select(sessions.c.head, sessions.c.name).where(sessions.c.head.in_(ids), sessions.c.name != name)
    heads = {row.head: row.name for row in connection.execute(others)}
    children: defaultdict[str, list[str]] = defaultdict(list)
    for row in connection.execute(select(snapshots.c.parent, snapshots.c.id).where(snapshots.c.parent.in_(ids))):
        children[row.parent].append(row.id)

    found: dict[str, str | None] = {}
    for id in connection.scalars(newest_first).all():
        found[id] = heads.get(id)
        for child in sorted(children[id], key=lambda child: child not in found):  # what is known already comes first
            if found[id] is not None:
                break
            found[id] = found[child] if child in found else heir(connection, name, child)
    return found
