"""What is particular to SQLite: connections, its one write lock, deleting for good, and what its errors mean."""

import hashlib
import os
import sqlite3
import weakref
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool

from deltamem_agents.errors import StoreError

WRITES = "deltamem_writes"
"""The execution option of transactions that will write."""

_REMEDIES = {
    sqlite3.SQLITE_BUSY: "is locked: another process holds its write lock; let that finish, or raise `timeout`",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: expected a file in a folder that exists; check path and permissions",
    sqlite3.SQLITE_CORRUPT: "is damaged: expected a sound SQLite database; restore a backup, or move the file away",
    sqlite3.SQLITE_FULL: "has no room left on its disk: nothing was written; free some space and try again",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports an error; check it, and that the file is there",
    sqlite3.SQLITE_LOCKED: "is locked by another connection of this process; let that finish",
    sqlite3.SQLITE_NOTADB: "is not a database: expected a SQLite file; choose another path, or move the file away",
    sqlite3.SQLITE_PERM: "may not be used: check the permissions of the file and its folder",
    sqlite3.SQLITE_READONLY: "is read-only: expected a file and folder to write to; check permissions and `mode`",
}


def in_memory(url: URL) -> bool:
    """Whether the database ends with its connection."""
    return url.database in (None, "", ":memory:")


def connect(url: URL, *, timeout: float) -> Engine:
    """Creates the engine, and a file that only its owner can read: all texts are in it.

    Transactions that will write take the write lock at once. A transaction that reads first would take it too late:
    if somebody wrote in between, SQLite fails it without waiting.
    """
    if in_memory(url):  # all threads share the one connection that the database lives in
        arguments = {"check_same_thread": False}
        engine = create_engine(url, poolclass=StaticPool, connect_args=arguments, hide_parameters=True)
    else:
        if url.database is not None and not url.database.startswith("file:"):
            _make_private(Path(url.database))
        engine = create_engine(url, connect_args={"timeout": timeout}, hide_parameters=True)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    if hasattr(os, "register_at_fork") and not in_memory(url):
        os.register_at_fork(after_in_child=partial(_leave_to_parent, weakref.ref(engine)))
    return engine


def _leave_to_parent(found: "weakref.ref[Engine]") -> None:
    """In a fork: a connection must not be used by two processes, so there are new ones."""
    engine = found()
    if engine is not None:
        engine.dispose(close=False)


def _make_private(path: Path) -> None:
    """Creates a file for its owner alone; SQLite gives its companions the same mode."""
    if not path.parent.is_dir():
        raise StoreError(
            f"{path} cannot be created: there is no folder {path.parent}; make it (mkdir -p), or choose another path"
        )
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _prepare(connection: Any, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; `_begin` does
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA secure_delete=ON")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(WRITES) else "BEGIN")


def refuse_foreign(connection: Connection) -> None:
    """Raises a StoreError if a database without our tables has others: it is not ours to change."""
    if tables := inspect(connection).get_table_names():
        raise StoreError(
            f"{connection.engine.url.database} is another program's database with tables {', '.join(tables[:5])}: "
            "expected a session store or a new file; choose another path"
        )


def use_wal(engine: Engine) -> None:
    """Lets readers go on while somebody writes; the file remembers it."""
    with closing(engine.raw_connection()) as connection:  # outside of any transaction
        _rows(connection, "PRAGMA journal_mode=WAL")


_UNFINISHED = "unfinished deletion "
"""The beginning of keys in our table of settings; the rest is the hash of what was deleted."""


def empty_wal(engine: Engine, deleted: str, *, later: str = "forget the session once more") -> None:
    """Moves the log into the database and cuts it to nothing, so that what was deleted is on disk no more.

    Where a reader holds it, that is noted in the database, and whoever deletes something, opens the database or asks
    for it again by `finish` ends it.

    Args:
        engine: of the database.
        deleted: what was deleted.
        later: what ends it when no reader is in the way any more.
    """
    with closing(engine.raw_connection()) as connection:
        if _cut(connection):
            return
        key = _UNFINISHED + _hash(deleted)
        _rows(connection, "INSERT OR REPLACE INTO deltamem_meta VALUES (?, 'yes')", key)
    raise StoreError(
        f"what you name is deleted, but its bytes are still in {engine.url.database}-wal, which a reader holds open: "
        f"they go when the last reader is done and the store is closed, or when you {later}"
    )


def finish(engine: Engine, deleted: str | None = None) -> bool:
    """Ends deletions that a reader was in the way of, if there are any; whether `deleted` was one of them.

    Args:
        engine: of the database.
        deleted: what somebody asks for; None: nobody waits, and a reader may stay in the way.

    Raises:
        StoreError: a reader is in the way again.
    """
    with closing(engine.raw_connection()) as connection:
        asked = "%" if deleted is None else _hash(deleted)
        if not _rows(connection, "SELECT 1 FROM deltamem_meta WHERE key LIKE ? LIMIT 1", _UNFINISHED + asked):
            return False
        if deleted is None:
            _rows(connection, "PRAGMA busy_timeout=0")
            _cut(connection)
            connection.invalidate()  # whoever gets it next has a timeout again
            return False
    empty_wal(engine, deleted)
    return True


def _cut(connection: Any) -> bool:
    """Empties the log; False where a reader is in the way."""
    if _rows(connection, "PRAGMA wal_checkpoint(TRUNCATE)")[0][0]:
        return False
    if _rows(connection, "SELECT 1 FROM deltamem_meta WHERE key LIKE ? LIMIT 1", _UNFINISHED + "%"):
        _rows(connection, "DELETE FROM deltamem_meta WHERE key LIKE ?", _UNFINISHED + "%")
        _rows(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
    return True


def _rows(connection: Any, statement: str, *values: str) -> list[tuple[Any, ...]]:
    """Outside of any transaction."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def explain(error: BaseException | None) -> str | None:
    """Says what a driver error means and what to do; None if it is not one of SQLite's known ones."""
    code = getattr(error, "sqlite_errorcode", None)  # the low byte is the kind, the rest the detail
    return None if code is None else _REMEDIES.get(code & 0xFF)
