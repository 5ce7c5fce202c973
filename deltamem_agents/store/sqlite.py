"""What is particular to SQLite: connections, its one write lock, deleting for good, and what its errors mean."""

import sqlite3
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
    """Creates the engine; a file's parent folders too.

    Transactions that will write take the write lock at once. A transaction that reads first would take it too late:
    if somebody wrote in between, SQLite fails it without waiting.
    """
    if in_memory(url):  # all threads share the one connection that the database lives in
        arguments = {"check_same_thread": False}
        engine = create_engine(url, poolclass=StaticPool, connect_args=arguments, hide_parameters=True)
    else:
        if url.database is not None and not url.database.startswith("file:"):
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, connect_args={"timeout": timeout}, hide_parameters=True)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


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
    _pragma(engine, "journal_mode=WAL")


def empty_wal(engine: Engine) -> None:
    """Moves the log into the database and cuts it to nothing, so that what was deleted is on disk no more."""
    if _pragma(engine, "wal_checkpoint(TRUNCATE)")[0]:
        raise StoreError(
            f"the session is deleted, but its bytes are still in {engine.url.database}-wal, which a reader holds open: "
            "they go when the last reader is done and the store is closed"
        )


def _pragma(engine: Engine, pragma: str) -> tuple[Any, ...]:
    connection = engine.raw_connection()  # outside of any transaction
    try:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA {pragma}")
        return cursor.fetchone() or ()
    finally:
        connection.close()


def explain(error: BaseException | None) -> str | None:
    """Says what a driver error means and what to do; None if it is not one of SQLite's known ones."""
    code = getattr(error, "sqlite_errorcode", None)  # the low byte is the kind, the rest the detail
    return None if code is None else _REMEDIES.get(code & 0xFF)
