"""A store in a SQL database: a SQLite file by default, PostgreSQL by URL."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Select,
    bindparam,
    create_engine,
    delete,
    func,
    insert,
    make_url,
    or_,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from deltamem_agents.errors import ConflictError, StoreError
from deltamem_agents.store import sqlite
from deltamem_agents.store.base import (
    StateStore,
    check_child,
    check_head,
    check_keep,
    closed,
    not_its_own,
    pruned,
    taken,
    unknown_session,
    unknown_snapshot,
)
from deltamem_agents.store.lines import ancestry, heirs, on_line
from deltamem_agents.store.migrations import LATEST, migrate, version
from deltamem_agents.store.records import SessionInfo, Snapshot
from deltamem_agents.store.tables import TURNS, entries, meta, now, sessions, snapshots, to_info, to_rows, to_snapshots

_INFO = select(
    sessions,
    snapshots.c.fingerprint,
    snapshots.c.turn,
    snapshots.c.messages,
    func.length(snapshots.c.state).label("state_bytes"),
).outerjoin_from(sessions, snapshots, snapshots.c.id == sessions.c.head)


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
            self._engine = (
                sqlite.connect(url, timeout=timeout) if self._sqlite else create_engine(url, hide_parameters=True)
            )
            self._writer = self._engine.execution_options(**{sqlite.WRITES: True})
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
            return _load(connection, id)

    def line(self, head: str, *, since: int = 0) -> list[Snapshot]:
        """Lists a line; see `StateStore.line`."""
        with self._transaction(self._engine) as connection:
            ids = select(ancestry(head, since=since).c.id)
            found = to_snapshots(connection.execute(TURNS.where(snapshots.c.id.in_(ids))))
        if not found:
            raise unknown_snapshot(head)
        return [snapshot for snapshot in found if snapshot.messages > since]  # the head comes in any case

    def boundary(self, head: str, position: int) -> Snapshot | None:
        """Loads the state at a position; see `StateStore.boundary`."""
        after = ancestry(head, since=position)
        with self._transaction(self._engine) as connection:
            first = connection.execute(select(after).order_by(after.c.turn).limit(1)).first()
            if first is None:
                raise unknown_snapshot(head)
            if first.messages <= position:
                return _load(connection, head)
            if first.parent is not None:
                return _load(connection, first.parent)
            start = _load(connection, first.id).start
        if start > 0:
            raise pruned(head, position, start=start)
        return None

    def commit(self, name: str, snapshot: Snapshot, *, expected: str | None, drop_text_before: int = 0) -> None:
        """Adds a snapshot and moves the head to it; see `StateStore.commit`."""
        row, rows = to_rows(snapshot)
        with self._transaction(self._writer) as connection:
            _lock(connection)
            check_head(name, found=_head(connection, name), expected=expected)
            known = select(snapshots.c.turn, snapshots.c.messages)
            parent = connection.execute(known.where(snapshots.c.id == snapshot.parent)).first()
            check_child(name, snapshot, (parent.turn, parent.messages) if parent else None)
            if connection.execute(known.where(snapshots.c.id == snapshot.id)).first():
                raise StoreError(f"snapshot {snapshot.id!r} is in this store already: give each turn a new id")
            connection.execute(insert(snapshots), row)
            if rows:
                connection.execute(insert(entries), rows)
            _point(connection, name, snapshot.id)
            _drop_text(connection, name, snapshot.id, drop_text_before)

    def move_head(self, name: str, to: str | None, *, expected: str | None) -> None:
        """Moves the head; see `StateStore.move_head`."""
        with self._transaction(self._writer) as connection:
            _lock(connection)
            head = _head(connection, name, required=True)
            check_head(name, found=head, expected=expected)
            if to is not None and _load(connection, to).session != name and not on_line(connection, head, to):
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
            owners = heirs(connection, name, _of(name, head))
            connection.execute(delete(sessions).where(sessions.c.name == name))
            _delete(connection, [id for id, heir in owners.items() if heir is None])
            if left := [{"left": id, "heir": heir} for id, heir in owners.items() if heir is not None]:
                owned = update(snapshots).where(snapshots.c.id == bindparam("left"), snapshots.c.session == name)
                connection.execute(owned.values(session=bindparam("heir")), left)
        if self._sqlite:
            with self._turns, _translated(self._where):
                sqlite.empty_wal(self._engine)

    def prune(self, name: str, *, keep: int) -> int:
        """Deletes a line's old snapshots; see `StateStore.prune`."""
        check_keep(keep)
        with self._transaction(self._writer) as connection:
            _lock(connection, alone=True)
            head = _head(connection, name, required=True)
            line = ancestry(head)
            kept = set(connection.scalars(select(line.c.id).order_by(line.c.turn.desc()).limit(keep)))
            owners = heirs(connection, name, _of(name, head))
            gone = [id for id, heir in owners.items() if heir is None and id not in kept]
            _delete(connection, gone)
        return len(gone)

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
    found = connection.execute(select(sessions.c.head).where(sessions.c.name == name).with_for_update()).first()
    if found is None and required:
        raise unknown_session(name)
    return found.head if found else None


def _load(connection: Connection, id: str) -> Snapshot:
    found = to_snapshots(connection.execute(TURNS.where(snapshots.c.id == id)))
    state = connection.scalar(select(snapshots.c.state).where(snapshots.c.id == id))
    if not found or state is None:
        raise unknown_snapshot(id)
    return replace(found[0], state=state)


def _point(connection: Connection, name: str, head: str | None) -> None:
    time = now()
    moved = connection.execute(update(sessions).where(sessions.c.name == name).values(head=head, updated_at=time))
    if moved.rowcount:
        return
    try:
        connection.execute(insert(sessions).values(name=name, head=head, created_at=time, updated_at=time))
    except IntegrityError as error:  # in PostgreSQL, a row that isn't there yet cannot be locked
        raise ConflictError(f"session {name!r} was just created by somebody else: look at it and try again") from error


def _of(name: str, head: str | None) -> Select[tuple[str]]:
    """The ids of the session's line, and of what it owns besides."""
    owned = or_(snapshots.c.session == name, snapshots.c.id.in_(select(ancestry(head).c.id)))
    return select(snapshots.c.id).where(owned)


def _drop_text(connection: Connection, name: str, head: str, before: int) -> None:
    line = ancestry(head)
    has_text = entries.c.text.is_not(None)
    droppable = select(func.min(line.c.messages)).join(entries, entries.c.snapshot == line.c.id)
    oldest = connection.scalar(droppable.where(entries.c.position < before, has_text))
    if oldest is None:
        return
    ids = select(ancestry(head, since=oldest - 1).c.id)
    if private := [{"of": id} for id, heir in heirs(connection, name, ids).items() if heir is None]:
        drop = update(entries).where(entries.c.snapshot == bindparam("of"), entries.c.position < before, has_text)
        connection.execute(drop.values(text=None), private)


def _delete(connection: Connection, ids: list[str]) -> None:
    """Deletes snapshots; the database deletes their entries and makes their children start their lines."""
    if ids:
        connection.execute(delete(snapshots).where(snapshots.c.id == bindparam("gone")), [{"gone": id} for id in ids])
