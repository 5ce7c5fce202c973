"""A store in a SQL database: a SQLite file by default, PostgreSQL by URL."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from deltamem_agents.store.base import StateStore
from deltamem_agents.store.checks import (
    check_head,
    check_keep,
    check_limit,
    check_line,
    not_its_own,
    taken,
    taken_id,
    unknown_session,
)
from deltamem_agents.store.database import Database
from deltamem_agents.store.deleting import delete_snapshots, erase, prune
from deltamem_agents.store.families import hold_families, share_families
from deltamem_agents.store.lines import ancestry, heirs, of_thread, on_line, own, through
from deltamem_agents.store.reading import (
    find,
    kept,
    keyed,
    known,
    load,
    owner_of,
    place_of,
    require,
    starting_with,
    turns_of,
)
from deltamem_agents.store.records import SessionInfo, Snapshot, age
from deltamem_agents.store.tables import entries, now, sessions, snapshots, to_info, to_rows

_INFO = select(
    sessions,
    snapshots.c.fingerprint,
    snapshots.c.turn,
    snapshots.c.messages,
    func.length(snapshots.c.state).label("state_bytes"),
).outerjoin_from(sessions, snapshots, snapshots.c.id == sessions.c.head)
_HEAD = select(sessions.c.head, sessions.c.created_at)


class SQLStore(StateStore):
    """A `StateStore` in SQLite or PostgreSQL; several processes may use it at once.

    A PostgreSQL that goes away is waited for. If it goes while it is told to keep a change, it is asked when it is back
    whether it did: a snapshot is found by its id, and a change is neither lost nor made twice.
    """

    def __init__(self, url_or_path: str | Path, *, timeout: float = 10.0) -> None:
        """Opens the store, and creates or upgrades its tables.

        Args:
            url_or_path: A SQLite file, created if need be, or a database URL (with `://`). `postgresql://…` is
                PostgreSQL by psycopg 3, from the extra `postgres`; the URL may have options for the pool of
                connections, like `?pool_size=10&pool_recycle=600`: see `postgresql.Pool`. A pgbouncer in transaction
                mode may be in between.
            timeout: How many seconds to wait while another process writes; PostgreSQL: the same session, or while the
                database is away.

        Raises:
            StoreError: if it cannot be opened, or is something else.
        """
        self._database = Database(url_or_path, timeout=timeout)

    def session(self, name: str) -> SessionInfo | None:
        """Looks a session up; see `StateStore.session`."""
        row = self._database.read(lambda connection: connection.execute(_INFO.where(sessions.c.name == name)).first())
        return to_info(row) if row else None

    def sessions(self, *, prefix: str = "", after: str | None = None, limit: int | None = None) -> list[SessionInfo]:
        """Lists sessions; see `StateStore.sessions`."""
        check_limit(limit)
        page = _INFO.where(*starting_with(prefix)).order_by(sessions.c.name).limit(limit)
        if after is not None:
            page = page.where(sessions.c.name > after)
        return [to_info(row) for row in self._database.read(lambda connection: connection.execute(page).all())]

    def count(self, *, prefix: str = "") -> int:
        """Counts sessions; see `StateStore.count`."""
        number = select(func.count()).select_from(sessions).where(*starting_with(prefix))
        return self._database.read(lambda connection: connection.scalar(number) or 0)

    def snapshot(self, id: str) -> Snapshot:
        """Loads a snapshot; see `StateStore.snapshot`."""
        return self._database.read(lambda connection: load(connection, id))

    def line(self, head: str, *, since: int = 0) -> list[Snapshot]:
        """Lists a line; see `StateStore.line`."""

        def walk(connection: Connection) -> list[Snapshot]:
            require(connection, head)
            return turns_of(connection, select(ancestry(head, since=since).c.id))

        found = self._database.read(walk)
        return [snapshot for snapshot in found if snapshot.messages > since]  # the head comes in any case

    def thread(self, head: str, thread: str, *, last: int) -> list[Snapshot]:
        """Lists a thread's newest turns; see `StateStore.thread`."""

        def walk(connection: Connection) -> list[Snapshot]:
            require(connection, head)
            return turns_of(connection, of_thread(head, thread, last=last)) if last > 0 else []

        return self._database.read(walk)

    def find(self, name: str, message_ids: Collection[str]) -> dict[str, Snapshot]:
        """Finds messages by their ids; see `StateStore.find`."""

        def look(connection: Connection) -> dict[str, Snapshot]:
            head = connection.scalar(_HEAD.where(sessions.c.name == name))
            return find(connection, name, head, set(message_ids))

        return self._database.read(look)

    def absorbed(self, head: str, key: str) -> str | None:
        """Finds an absorption; see `StateStore.absorbed`."""

        def look(connection: Connection) -> str | None:
            require(connection, head)
            return keyed(connection, head, key)

        return self._database.read(look)

    def log(self, name: str) -> list[Snapshot]:
        """Lists a session's own snapshots; see `StateStore.log`."""

        def look(connection: Connection) -> list[Snapshot]:
            return turns_of(connection, own(name, _head(connection, name, required=True)))

        return sorted(self._database.read(look), key=age)

    def commit(self, name: str, snapshot: Snapshot, *, expected: str | None) -> None:
        """Adds a snapshot and moves the head to it; see `StateStore.commit`."""
        self.add_line(name, [snapshot], expected=expected)

    def add_line(self, name: str, line: Sequence[Snapshot], *, expected: str | None) -> None:
        """Adds snapshots and moves the head to the last; see `StateStore.add_line`."""

        def add(connection: Connection, again: bool) -> None:
            if again and line and kept(connection, line[-1]):
                return
            head, parent = _head(connection, name), line[0].parent if line else None
            check_head(name, found=head, expected=expected)
            families = share_families(connection, head, parent)
            check_line(name, line, place_of(connection, line))
            ids = [snapshot.id for snapshot in line]
            for id in (*known(connection, ids), *(id for id, times in Counter(ids).items() if times > 1)):
                raise taken_id(id)
            root = families.get(parent, ids[0])
            rows, of_entries = zip(*(to_rows(snapshot, root=root) for snapshot in line), strict=True)
            connection.execute(insert(snapshots), rows)
            if flat := [row for rows in of_entries for row in rows]:
                connection.execute(insert(entries), flat)
            _point(connection, name, ids[-1], time=now())

        self._database.write(add, name)

    def move_head(self, name: str, to: str | None, *, expected: str | None) -> None:
        """Moves the head; see `StateStore.move_head`."""

        def move(connection: Connection, again: bool) -> None:
            head = _head(connection, name, required=True)
            if again and head == to:
                return
            check_head(name, found=head, expected=expected)
            share_families(connection, head, to)
            if to is not None and owner_of(connection, to) != name and not on_line(connection, head, to):
                raise not_its_own(name, to, head=head)
            _point(connection, name, to, time=now())

        self._database.write(move, name)

    def fork(self, name: str, new_name: str, *, at: str | None = None) -> None:
        """Creates a session on another one's line; see `StateStore.fork`."""
        time = now()

        def branch(connection: Connection, again: bool) -> None:
            head = _head(connection, name, required=True)
            share_families(connection, head)
            if there := connection.execute(_HEAD.where(sessions.c.name == new_name)).first():
                if again and there.created_at == time:
                    return
                raise taken(new_name)
            if at is not None and not on_line(connection, head, at):
                raise not_its_own(name, at, head=head)
            _point(connection, new_name, head if at is None else at, time=time)

        self._database.write(branch, name, new_name)

    def forget(self, name: str) -> None:
        """Deletes a session; see `StateStore.forget`.

        In SQLite the bytes are overwritten, and the write-ahead log is emptied; where a reader is in the way, a second
        call does that. PostgreSQL leaves both to its vacuum.
        """
        if self._database.sqlite and self.session(name) is None and self._database.finish_deletion(name):
            return
        seen: list[str] = []

        def delete_it(connection: Connection, again: bool) -> None:
            found = connection.execute(_HEAD.where(sessions.c.name == name)).first()
            if again and seen and (found is None or found.created_at != seen[-1]):
                return  # and if there is one now, it is a new one
            if found is None:
                raise unknown_session(name)
            seen.append(found.created_at)
            mine = own(name, found.head)
            hold_families(connection, mine)
            owners = heirs(connection, name, mine, first=True)
            connection.execute(delete(sessions).where(sessions.c.name == name))
            delete_snapshots(connection, [id for id, heir in owners.items() if heir is None])
            if left := [{"left": id, "heir": heir} for id, heir in owners.items() if heir is not None]:
                owned = update(snapshots).where(snapshots.c.id == bindparam("left"), snapshots.c.session == name)
                connection.execute(owned.values(session=bindparam("heir")), left)

        self._database.write(delete_it, name)
        self._database.scrub(name, later="forget the session once more")

    def through(self, id: str) -> list[str]:
        """Lists the sessions that go through a snapshot; see `StateStore.through`."""
        return self._database.read(lambda connection: through(connection, id))

    def erase(self, name: str, ids: Collection[str]) -> int:
        """Deletes what a session has left; see `StateStore.erase`. The bytes go as in `forget`."""
        gone: list[str] = []

        def delete_them(connection: Connection, again: bool) -> None:
            if again and gone and not known(connection, gone):
                return
            head = _head(connection, name, required=True)
            hold_families(connection, own(name, head))
            gone[:] = erase(connection, name, head, ids)

        self._database.write(delete_them, name)
        self._database.scrub(f"some of {name}", later="delete anything else from it")
        return len(gone)

    def prune(self, name: str, *, keep: int) -> int:
        """Deletes a line's old snapshots; see `StateStore.prune`."""
        check_keep(keep)

        def delete_old(connection: Connection, again: bool) -> int:
            head = _head(connection, name, required=True)
            hold_families(connection, own(name, head))
            return prune(connection, name, head, keep=keep)

        pruned = self._database.write(delete_old, name)
        self._database.finish_deletion()
        return pruned

    def close(self) -> None:
        """Ends the store; see `StateStore.close`."""
        self._database.close()


def _head(connection: Connection, name: str, *, required: bool = False) -> str | None:
    found = connection.execute(_HEAD.where(sessions.c.name == name)).first()
    if found is None and required:
        raise unknown_session(name)
    return found.head if found else None


def _point(connection: Connection, name: str, head: str | None, *, time: str) -> None:
    moved = connection.execute(update(sessions).where(sessions.c.name == name).values(head=head, updated_at=time))
    if not moved.rowcount:
        connection.execute(insert(sessions).values(name=name, head=head, created_at=time, updated_at=time))
