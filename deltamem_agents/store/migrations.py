"""How the tables came to be what they are: one step per schema version, each run once and never edited afterwards."""

from sqlalchemy import Connection, inspect, text

from deltamem_agents.errors import StoreError

MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        "CREATE TABLE deltamem_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "INSERT INTO deltamem_meta VALUES ('schema', '0')",
        """
        CREATE TABLE deltamem_snapshots (
            id TEXT PRIMARY KEY,
            parent TEXT REFERENCES deltamem_snapshots ON DELETE SET NULL,
            session TEXT NOT NULL,
            thread TEXT NOT NULL,
            turn INTEGER NOT NULL,
            messages INTEGER NOT NULL,
            tokens INTEGER NOT NULL,
            fingerprint TEXT NOT NULL,
            created_at TEXT NOT NULL,
            kind TEXT NOT NULL,
            state {blob} NOT NULL
        )
        """,
        "CREATE INDEX deltamem_snapshots_parent ON deltamem_snapshots (parent)",
        "CREATE INDEX deltamem_snapshots_session ON deltamem_snapshots (session)",
        """
        CREATE TABLE deltamem_entries (
            snapshot TEXT NOT NULL REFERENCES deltamem_snapshots ON DELETE CASCADE,
            position INTEGER NOT NULL,
            role TEXT NOT NULL,
            digest TEXT NOT NULL,
            message_id TEXT,
            written INTEGER NOT NULL,
            text TEXT,
            entry_tokens INTEGER NOT NULL,
            PRIMARY KEY (snapshot, position)
        )
        """,
        """
        CREATE TABLE deltamem_sessions (
            name TEXT PRIMARY KEY,
            head TEXT REFERENCES deltamem_snapshots,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        )
        """,
        "CREATE INDEX deltamem_sessions_head ON deltamem_sessions (head)",
    ),
}
"""SQL that SQLite and PostgreSQL both understand; `{blob}` is the one type that they name differently."""

LATEST = max(MIGRATIONS)


def version(connection: Connection) -> int:
    """Reads which schema the database has; 0 is none at all.

    Raises:
        StoreError: if it was written by a later version of this package.
    """
    if not inspect(connection).has_table("deltamem_meta"):
        return 0
    found = int(connection.scalar(text("SELECT value FROM deltamem_meta WHERE key = 'schema'")) or 0)
    if found > LATEST:
        raise StoreError(
            f"this store has schema version {found}, expected at most {LATEST}: a later deltamem-agents wrote it; "
            "upgrade the package, or use another store"
        )
    return found


def migrate(connection: Connection) -> None:
    """Brings the database to the latest schema, inside the caller's transaction."""
    blob = "BYTEA" if connection.dialect.name == "postgresql" else "BLOB"
    for step in range(version(connection) + 1, LATEST + 1):
        for statement in MIGRATIONS[step]:
            connection.execute(text(statement.format(blob=blob)))
        connection.execute(text("UPDATE deltamem_meta SET value = :step WHERE key = 'schema'"), {"step": str(step)})
