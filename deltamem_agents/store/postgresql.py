"""What is particular to PostgreSQL: its driver and pool, its locks, and what its errors mean."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import URL, Connection, Engine, create_engine, exc, func, select, text

from deltamem_agents.errors import StoreError

DRIVER = "postgresql+psycopg"
NAMES = ("postgresql", "postgres", DRIVER)
"""What a URL may begin with: all of them mean psycopg 3, whichever driver SQLAlchemy would take."""

_READ_ONLY = "25006"
_REMEDIES = {
    _READ_ONLY: "is read-only: expected a database to write to; use the primary instead of a replica, or lift "
    "default_transaction_read_only",
    "25P03": "ended a transaction that was idle for longer than `timeout`: try again, or raise `timeout`",
    "42501": "refuses this user: expected one who may create, read and change its tables; GRANT that, or use another",
    "53100": "has no room left on its disk: nothing was written; free some space and try again",
    "53300": "has no connection left: lower pool_size in the URL, raise max_connections, or put pgbouncer in between",
    "55P03": "is locked: another process works on the same session; let that finish, or raise `timeout`",
}
_SILENT = "does not answer: expected a PostgreSQL server there; check host and port, and that it runs"
_REFUSALS = {
    "password authentication failed": "refuses user and password: check both in the URL",
    "no password supplied": "wants a password: put it into the URL, or into ~/.pgpass",
    "does not exist": "is not there: expected an existing database and user; check both names, or run createdb",
}
_NO_DRIVER = 'needs psycopg 3, which is not there: pip install "deltamem-agents[postgres]"'
_NO_SPARE = "has all connections of this process's pool in use: raise pool_size or max_overflow in the URL"

_SESSION, _TABLES = 0x64656C74, 0x61000001
"""Seeds of advisory locks: whoever uses the database shares their numbers."""


class Pool(BaseModel):
    """Connections that a store keeps open, as options of its URL: `postgresql://…?pool_size=10&pool_recycle=600`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool_size: int = Field(5, ge=1)
    """Connections that stay open."""
    max_overflow: int = Field(10, ge=0)
    """How many more there may be for a while."""
    pool_timeout: float = Field(30.0, gt=0)
    """Seconds to wait for a connection when all are in use."""
    pool_recycle: int = Field(1800, ge=-1)
    """Seconds after which a connection is opened anew; -1 for never."""
    pool_pre_ping: bool = True
    """Whether to ask each connection for a sign of life before it is used."""


def is_postgresql(url: URL) -> bool:
    """Whether the URL names PostgreSQL, with the driver that this package uses or with none."""
    return url.drivername in NAMES


def connect(url: URL, *, timeout: float) -> Engine:
    """Creates the engine: psycopg 3, without prepared statements, which pgbouncer cannot hand from one to another."""
    given = {name: value for name, value in url.query.items() if name in Pool.model_fields}
    try:
        pool = Pool.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StoreError(
            f"the store's URL has {first['loc'][0]}={first['input']}: {first['msg']}; expected like pool_size=10"
        ) from error
    plain = url.set(drivername=DRIVER).difference_update_query(given)
    seconds = max(2, round(timeout))
    wanted = {
        "application_name": "deltamem-agents",
        "connect_timeout": seconds,
        # Else a machine that vanishes is waited for by the hour.
        "tcp_user_timeout": 1000 * seconds,
        "keepalives_idle": seconds,
        "keepalives_interval": seconds,
        "keepalives_count": 2,
    }
    arguments = {name: value for name, value in wanted.items() if name not in plain.query}
    return create_engine(
        plain,
        **pool.model_dump(),
        connect_args={"prepare_threshold": None, **arguments},
        hide_parameters=True,
        use_native_hstore=False,
    )


def lock_sessions(connection: Connection, names: Iterable[str], *, timeout: float) -> None:
    """Waits until no other transaction changes these sessions, and keeps others waiting; at most `timeout` seconds.

    The server ends a transaction whose client has vanished after as many seconds: nobody waits for it forever.
    """
    most = str(round(1000 * timeout))
    limits = [func.set_config(name, most, True) for name in ("lock_timeout", "idle_in_transaction_session_timeout")]
    for name in sorted(set(names)):
        connection.execute(select(*limits, func.pg_advisory_xact_lock(func.hashtextextended(name, _SESSION))))


def lock_migrations(connection: Connection) -> None:
    """Lets one process after the other look at the tables and change them."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("deltamem_meta", _TABLES))))


def read_only(connection: Connection) -> bool:
    """Whether this transaction may not write: a replica, or a server or user that is set so."""
    return str(connection.scalar(text("SELECT current_setting('transaction_read_only')"))) == "on"


def passing(error: BaseException) -> bool:
    """Whether the transaction certainly or possibly was not kept, for a reason that may be gone in a moment.

    The connection or the server went away, or the server chose this transaction to give way to another.
    """
    if not isinstance(error, exc.DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # not the server's word, but the connection's
        return error.connection_invalidated or isinstance(error, exc.OperationalError)
    return error.connection_invalidated or state[:2] in ("08", "40") or state in ("57P01", "57P02", "57P03", "53300")


def explain(error: BaseException) -> str | None:
    """Says what an error means and what to do; None if it is not one of PostgreSQL's known ones."""
    if isinstance(error, ImportError) and "psycopg" in str(error):
        return _NO_DRIVER
    if isinstance(error, exc.TimeoutError):
        return _NO_SPARE
    if not isinstance(error, exc.DBAPIError):
        return None
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return _REMEDIES.get(state, "went away and did not come back: try again later" if passing(error) else None)
    if not passing(error):
        return None
    cause = str(error.orig)
    return next((remedy for words, remedy in _REFUSALS.items() if words in cause), _SILENT)
