"""A database and how it is worked with: opened, upgraded, in whole transactions, and found again when it was lost."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from deltamem_agents.errors import StoreError
from deltamem_agents.store import postgresql, sqlite
from deltamem_agents.store.checks import closed
from deltamem_agents.store.migrations import LATEST, migrate, version

_T = TypeVar("_T")
_FAILURES = (SQLAlchemyError, sqlite3.Error, OSError, ImportError, UnicodeError)
_PAUSE, _LONGEST = 0.05, 1.0
"""Seconds between attempts to reach a database that went away: the first time, and at most."""


class Database:
    """SQLite or PostgreSQL. Whatever it or its driver raises becomes a `StoreError`: where, what, and what to do."""

    def __init__(self, url_or_path: str | Path, *, timeout: float) -> None:
        """Opens it, and creates or upgrades the tables."""
        self._closed = False
        self._timeout = timeout
        with _translated("the store's URL"):
            url = _url(url_or_path)
        self._where = without_password(url)
        self.sqlite = url.get_backend_name() == "sqlite"
        # One connection cannot hold two transactions, so threads take turns on a database in memory.
        alone = self.sqlite and sqlite.in_memory(url)
        self._turns: AbstractContextManager[object] = threading.RLock() if alone else nullcontext()
        with _translated(self._where):
            self._reader, self._writer = self._engines(url)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def read(self, work: Callable[[Connection], _T]) -> _T:
        """Does something that sees one moment and changes nothing."""
        return self._run(self._reader, lambda connection, _: work(connection))

    def write(self, work: Callable[[Connection, bool], _T], *names: str) -> _T:
        """Does something all or nothing, while no other transaction changes the sessions of these names.

        A PostgreSQL that goes away is waited for, up to the store's `timeout`, and the work begun again. If it went
        while it was told to keep the work, nobody knows whether it did. So `work` is also told whether that is so, and
        has to look: what the lost attempt kept is there by then, as it held the same lock.
        """

        def locked(connection: Connection, again: bool) -> _T:
            if not self.sqlite:
                postgresql.lock_sessions(connection, names, timeout=self._timeout)
            return work(connection, again)

        return self._run(self._writer, locked)

    def scrub(self, deleted: str, *, later: str) -> None:
        """SQLite: moves what was deleted off the disk; where a reader is in the way, says what helps later."""
        if self.sqlite:
            with self._turns, _translated(self._where):
                sqlite.empty_wal(self._reader, deleted, later=later)

    def finish_deletion(self, deleted: str | None = None) -> bool:
        """SQLite: ends deletions that a reader was in the way of; whether `deleted` was one. None: nobody waits."""
        if not self.sqlite:
            return False
        with self._turns, _translated(self._where):
            return sqlite.finish(self._reader, deleted)

    def close(self) -> None:
        """Releases all connections."""
        self._closed = True
        self._reader.dispose()

    def _engines(self, url: URL) -> tuple[Engine, Engine]:
        if self.sqlite:
            engine = sqlite.connect(url, timeout=self._timeout)
            return engine, engine.execution_options(**{sqlite.WRITES: True})
        if not postgresql.is_postgresql(url):
            raise StoreError(
                f"{self._where} cannot be used: {url.drivername} is neither SQLite nor PostgreSQL by psycopg 3; "
                "expected a file, sqlite:///FILE or postgresql://USER@HOST/DATABASE"
            )
        engine = postgresql.connect(url, timeout=self._timeout)
        # Several statements of a reader see one moment; a writer sees what others kept while it waited for its locks.
        reader = engine.execution_options(isolation_level="REPEATABLE READ")
        return reader, engine.execution_options(isolation_level="READ COMMITTED")

    def _open(self) -> None:
        def look(connection: Connection) -> int:
            found = version(connection)
            if self.sqlite and not found:
                sqlite.refuse_foreign(connection)
            return found

        with _translated(self._where):
            with self._reader.begin() as connection:
                found = look(connection)
            if self.sqlite:
                sqlite.use_wal(self._reader)
            if found < LATEST:
                with self._writer.begin() as connection:
                    migrate(connection)  # which looks again: another process may have been faster
            if self.sqlite:
                with suppress(sqlite3.Error):  # read-only
                    sqlite.finish(self._reader)

    def _run(self, engine: Engine, work: Callable[[Connection, bool], _T]) -> _T:
        """One transaction, begun again as long as the database is only away for a moment."""
        unsure, pause, end = False, _PAUSE, time.monotonic() + self._timeout
        while True:
            if self._closed:
                raise closed()
            done = False
            try:
                with self._turns, engine.begin() as connection:
                    result = work(connection, unsure)
                    done = True
                return result
            except StoreError:
                raise
            except _FAILURES as error:
                away = not self.sqlite and postgresql.passing(error)
                unsure = unsure or (away and done)
                if not away or time.monotonic() > end:
                    raise _explained(error, self._where, unsure=unsure) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)


def _url(url_or_path: str | Path) -> URL:
    if isinstance(url_or_path, str) and "://" in url_or_path:
        return make_url(url_or_path)
    return URL.create("sqlite", database=str(Path(url_or_path).expanduser()))


def without_password(url: URL) -> str:
    """The URL without passwords, wherever they stand in it."""
    if "password" in url.query:
        url = url.update_query_dict({"password": "***"})
    return url.render_as_string(hide_password=True)


@contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except _FAILURES as error:
        raise _explained(error, where) from error


def _explained(error: BaseException, where: str, *, unsure: bool = False) -> StoreError:
    """A StoreError that says where, what and what to do."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    reason = sqlite.explain(cause) or postgresql.explain(error)
    reason = reason or "cannot be used: check that it is there, and that the data is well formed"
    doubt = "; whether it kept the last change cannot be told before: look then, and don't repeat it blindly"
    return StoreError(f"{where} {reason}{doubt if unsure else ''} ({str(cause).strip()})")
