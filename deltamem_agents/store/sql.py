"""A store in a SQL database: a SQLite file by default, PostgreSQL by URL."""

import sqlite3
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, bindparam, create_engine, delete, func, insert, make_url, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from deltamem_agents.errors import ConflictError, StoreError
from deltamem_agents.store import sqlite
from deltamem_agents.store.base import StateStore
from deltamem_agents.store.checks import (
    check_head,
    check_keep,
    check_line,
    closed,
    not_its_own,
    taken,
    taken_id,
    unknown_session,
)
from deltamem_agents.store.deleting import delete_snapshots, erase, prune
from deltamem_agents.store.lines import ancestry, heirs, of_thread, on_line, own, through
from deltamem_agents.store.migrations import LATEST, migrate, version
from deltamem_agents.store.reading import find, keyed, known, load, place_of, require, turns_of
from deltamem_agents.store.records import SessionInfo, Snapshot, age
from deltamem_agents.store.tables import entries, meta, now, sessions, snapshots, to_info, to_rows

_INFO = select(
    sessions,
    snapshots.c.fingerprint,
    snapshots.c.turn,
    snapshots.c.messages,
    func.length(snapshots.c.state).label("state_bytes"),
).outerjoin_from(sessions, snapshots, snapshots.c.id == sessions.c.head)
_HEAD = select(sessions.c.head)


class SQLStore(StateStore):
    """A `StateStore` in SQLite or PostgreSQL; several processes may use it at once."""

    def __init__(self, url_or_path: str | Path, *, timeout: float = 10.0) -> None:
        """Opens the store, and creates or upgrades its tables.

        Args:
            url_or_path: A database URL (with `://`), or a SQLite file, created if need be.
            timeout: SQLite: how many seconds to wait while another process writes.

        Raises:
            StoreError: if it cannot be opened, or is something else.
        """
        self._closed = False
        with _translated("the store's URL"):
            url = _url(url_or_path)
        self._where = url.render_as_string(hide_password=True)
        self._sqlite = url.get_backend_name() == "sqlite"
        # One connection cannot hold two transactions, so threads take turns on a database in memory.
        alone = self._sqlite and sqlite.in_memory(url)
        self._turns: AbstractContextManager[object] = threading.RLock() if alone else nullcontext()
        with _translated(self._where):
            engine = sqlite.connect(url, timeout=timeout) if self._sqlite else create_engine(url, hide_parameters=True)
            self._writer = engine.execution_options(**{sqlite.WRITES: True})
            # Several statements of a reader see one moment; in SQLite they do in any case.
            self._engine = engine if self._sqlite else engine.execution_options(isolation_level="REPEATABLE READ")
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def session(self, name: str) -> SessionInfo | None:
        """Looks a session up; see `StateStore.session`."""
        with self._transaction(self._engine) as connection:
            row = connection.execute(_INFO.where(sessions.c.name == name)).first()
            return to_info(row) if row else None

    def sessions(self, *, prefix: str = "") -> list[SessionInfo]:
        """Lists sessions; see `StateStore.sessions`."""
        # Not LIKE, which has wildcards and in SQLite ignores case; not ORDER BY, which has a locale in PostgreSQL.
        starts = func.substr(sessions.c.name, 1, len(prefix)) == prefix
        with self._transaction(self._engine) as connection:
            return sorted(map(to_info, connection.execute(_INFO.where(starts))), key=lambda info: info.name)

    def snapshot(self, id: str) -> Snapshot:
        """Loads a snapshot; see `StateStore.snapshot`."""
        with self._transaction(self._engine) as connection:
            return load(connection, id)

    def line(self, head: str, *, since: int = 0) -> list[Snapshot]:
        """Lists a line; see `StateStore.line`."""
        with self._transaction(self._engine) as connection:
            require(connection, head)
            found = turns_of(connection, select(ancestry(head, since=since).c.id))
        return [snapshot for snapshot in found if snapshot.messages > since]  # the head comes in any case

    def thread(self, head: str, thread: str, *, last: int) -> list[Snapshot]:
        """Lists a thread's newest turns; see `StateStore.thread`."""
        with self._transaction(self._engine) as connection:
            require(connection, head)
            return turns_of(connection, of_thread(head, thread, last=last)) if last > 0 else []

    def find(self, name: str, message_ids: Collection[str]) -> dict[str, Snapshot]:
        """Finds messages by their ids; see `StateStore.find`."""
        with self._transaction(self._engine) as connection:
            head = connection.scalar(_HEAD.where(sessions.c.name == name))
            return find(connection, name, head, set(message_ids))

    def absorbed(self, head: str, key: str) -> str | None:
        """Finds an absorption; see `StateStore.absorbed`."""
        with self._transaction(self._engine) as connection:
            require(connection, head)
            return keyed(connection, head, key)

    def log(self, name: str) -> list[Snapshot]:
        """Lists a session's own snapshots; see `StateStore.log`."""
        with self._transaction(self._engine) as connection:
            found = connection.execute(_HEAD.where(sessions.c.name == name)).first()
            if found is None:
                raise unknown_session(name)
            return sorted(turns_of(connection, own(name, found.head)), key=age)

    def commit(self, name: str, snapshot: Snapshot, *, expected: str | None) -> None:
        """Adds a snapshot and moves the head to it; see `StateStore.commit`."""
        self.add_line(name, [snapshot], expected=expected)

    def add_line(self, name: str, line: Sequence[Snapshot], *, expected: str | None) -> None:
        """Adds snapshots and moves the head to the last; see `StateStore.add_line`."""
        with self._transaction(self._writer) as connection:
            _lock(connection)
            check_head(name, found=_head(connection, name), expected=expected)
            check_line(name, line, place_of(connection, line))
            ids = [snapshot.id for snapshot in line]
            for id in (*known(connection, ids), *(id for id, times in Counter(ids).items() if times > 1)):
                raise taken_id(id)
            rows, of_entries = zip(*map(to_rows, line), strict=True)
            connection.execute(insert(snapshots), rows)
            if flat := [row for rows in of_entries for row in rows]:
                connection.execute(insert(entries), flat)
            _point(connection, name, ids[-1])

    def move_head(self, name: str, to: str | None, *, expected: str | None) -> None:
        """Moves the head; see `StateStore.move_head`."""
        with self._transaction(self._writer) as connection:
            _lock(connection)
            head = _head(connection, name, required=True)
            check_head(name, found=head, expected=expected)
            if to is not None and load(connection, to).session != name and not on_line(connection, head, to):
                raise not_its_own(name, to, head=head)
            _point(connection, name, to)

    def fork(self, name: str, new_name: str, *, at: str | None = None) -> None:
        """Creates a session on another one's line; see `StateStore.fork`."""
        with self._transaction(self._writer) as connection:
            _lock(connection)
            head = _head(connection, name, required=True)
            if connection.execute(_INFO.where(sessions.c.name == new_name)).first():
                raise taken(new_name)
            if at is not None and not on_line(connection, head, at):
                raise not_its_own(name, at, head=head)
            _point(connection, new_name, head if at is None else at)

    def forget(self, name: str) -> None:
        """Deletes a session; see `StateStore.forget`.

        In SQLite the bytes are overwritten, and the write-ahead log is emptied. PostgreSQL leaves both to its vacuum.
        """
        with self._transaction(self._writer) as connection:
            _lock(connection, alone=True)
            head = _head(connection, name, required=True)
            owners = heirs(connection, name, own(name, head), first=True)
            connection.execute(delete(sessions).where(sessions.c.name == name))
            delete_snapshots(connection, [id for id, heir in owners.items() if heir is None])
            if left := [{"left": id, "heir": heir} for id, heir in owners.items() if heir is not None]:
                owned = update(snapshots).where(snapshots.c.id == bindparam("left"), snapshots.c.session == name)
                connection.execute(owned.values(session=bindparam("heir")), left)
        if self._sqlite:
            with self._turns, _translated(self._where):
                sqlite.empty_wal(self._engine)

    def through(self, id: str) -> list[str]:
        """Lists the sessions that go through a snapshot; see `StateStore.through`."""
        with self._transaction(self._engine) as connection:
            return through(connection, id)

    def erase(self, name: str, ids: Collection[str]) -> int:
        """Deletes what a session has left; see `StateStore.erase`. The bytes go as in `forget`."""
        with self._transaction(self._writer) as connection:
            _lock(connection, alone=True)
            head = _head(connection, name, required=True)
            gone = erase(connection, name, head, ids)
        if self._sqlite:
            with self._turns, _translated(self._where):
                sqlite.empty_wal(self._engine)
        return gone

    def prune(self, name: str, *, keep: int) -> int:
        """Deletes a line's old snapshots; see `StateStore.prune`."""
        check_keep(keep)
        with self._transaction(self._writer) as connection:
            _lock(connection, alone=True)
            head = _head(connection, name, required=True)
            return prune(connection, name, head, keep=keep)

    def close(self) -> None:
        """Ends the store; see `StateStore.close`."""
        self._closed = True
        self._engine.dispose()

    def _open(self) -> None:
        with self._transaction(self._engine) as connection:
            found = version(connection)
            if self._sqlite and not found:
                sqlite.refuse_foreign(connection)
        if self._sqlite:
            with _translated(self._where):
                sqlite.use_wal(self._engine)
        if found < LATEST:
            with self._transaction(self._writer) as connection:
                migrate(connection)  # which looks again: another process may have been faster

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        """All or nothing, on one connection."""
        if self._closed:
            raise closed()
        with self._turns, _translated(self._where), engine.begin() as connection:
            yield connection


def _url(url_or_path: str | Path) -> URL:
    if isinstance(url_or_path, str) and "://" in url_or_path:
        return make_url(url_or_path)
    return URL.create("sqlite", database=str(Path(url_or_path).expanduser()))


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Turns whatever the database or its driver raises into a StoreError that says where, what and what to do."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError, ImportError, UnicodeError) as error:
        if isinstance(error, StoreError):
            raise
        cause = error.orig if isinstance(error, DBAPIError) else error
        reason = sqlite.explain(cause) or "cannot be used: check that it is there, and that the data is well formed"
        raise StoreError(f"{where} {reason} ({cause})") from error


def _lock(connection: Connection, *, alone: bool = False) -> None:
    """Keeps deletions and other changes apart. In SQLite, where BEGIN IMMEDIATE does, this only reads a row."""
    connection.execute(select(meta.c.value).where(meta.c.key == "schema").with_for_update(read=not alone))


def _head(connection: Connection, name: str, *, required: bool = False) -> str | None:
    found = connection.execute(_HEAD.where(sessions.c.name == name).with_for_update()).first()
    if found is None and required:
        raise unknown_session(name)
    return found.head if found else None


def _point(connection: Connection, name: str, head: str | None) -> None:
    time = now()
    moved = connection.execute(update(sessions).where(sessions.c.name == name).values(head=head, updated_at=time))
    if moved.rowcount:
        return
    try:
        connection.execute(insert(sessions).values(name=name, head=head, created_at=time, updated_at=time))
    except IntegrityError as error:  # in PostgreSQL, a row that isn't there yet cannot be locked
        raise ConflictError(f"session {name!r} was just created by somebody else: look at it and try again") from error
