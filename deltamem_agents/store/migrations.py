"""How the tables came to be what they are: one step per schema version, each run once and never edited afterwards."""

from collections.abc import Callable

from sqlalchemy import Connection, inspect, text

from deltamem_agents.errors import StoreError
from deltamem_agents.store.postgresql import lock_migrations, read_only

Step = str | Callable[[Connection], None]


def count_threads(connection: Connection) -> None:
    """Counts the messages and tokens of each snapshot's thread, down every line.

    Whose messages were pruned is not known any more: they count for the thread of the oldest snapshot that is left,
    which is right wherever a line has one thread.
    """
    rows = connection.execute(
        text(
            "SELECT id, parent, thread, turn, messages, tokens, count(position) AS held, "
            "coalesce(sum(entry_tokens), 0) AS held_tokens FROM deltamem_snapshots "
            "LEFT JOIN deltamem_entries ON snapshot = id GROUP BY id ORDER BY turn"
        )
    ).all()
    # What the lines of the snapshots at one depth hold: id -> thread -> messages, tokens.
    above: dict[str | None, dict[str, tuple[int, int]]] = {}
    here: dict[str | None, dict[str, tuple[int, int]]] = {}
    depth, counted = 0, []
    for row in rows:
        if row.turn != depth:
            depth, above, here = row.turn, here, {}
        lines = above.get(row.parent, {})
        messages, tokens = lines.get(row.thread, (0, 0))
        messages, tokens = messages + row.held, tokens + int(row.held_tokens)
        if row.parent is None:
            messages, tokens = row.messages, row.tokens
        here[row.id] = {**lines, row.thread: (messages, tokens)}
        counted.append({"counted": row.id, "messages": messages, "tokens": tokens})
    if counted:
        update = "SET thread_messages = :messages, thread_tokens = :tokens WHERE id = :counted"
        connection.execute(text(f"UPDATE deltamem_snapshots {update}"), counted)


def order_and_families(connection: Connection) -> None:
    """PostgreSQL: texts go by code point, as in SQLite and Python, and each snapshot knows its tree.

    So the keys' own indexes serve prefixes and pages, and a new version of a locale cannot break them.
    """
    if connection.dialect.name != "postgresql":
        return
    for table, columns in {
        "snapshots": "id parent session thread key root",
        "entries": "snapshot message_id",
        "sessions": "name head",
    }.items():
        types = ", ".join(f'ALTER COLUMN {column} TYPE TEXT COLLATE "C"' for column in columns.split())
        connection.execute(text(f"ALTER TABLE deltamem_{table} {types}"))
    connection.execute(
        text(
            "WITH RECURSIVE tree AS (SELECT id, id AS first FROM deltamem_snapshots WHERE parent IS NULL UNION ALL "
            "SELECT s.id, tree.first FROM deltamem_snapshots AS s JOIN tree ON s.parent = tree.id) "
            "UPDATE deltamem_snapshots SET root = tree.first FROM tree WHERE deltamem_snapshots.id = tree.id"
        )
    )
    # Whoever still runs version 2 can write no more: it would not hold the locks.
    connection.execute(text("ALTER TABLE deltamem_snapshots ALTER COLUMN root SET NOT NULL"))


MIGRATIONS: dict[int, tuple[Step, ...]] = {
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
    2: (
        "ALTER TABLE deltamem_snapshots ADD COLUMN thread_messages INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE deltamem_snapshots ADD COLUMN thread_tokens INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE deltamem_snapshots ADD COLUMN key TEXT",
        "ALTER TABLE deltamem_snapshots ADD COLUMN note TEXT",
        # Turns without a label were labelled after their session, so that a fork's were of another thread.
        "UPDATE deltamem_snapshots SET thread = 'main' WHERE thread = session",
        count_threads,
        "ALTER TABLE deltamem_snapshots DROP COLUMN tokens",
        # The state moves to the end again: SQLite reads what comes before it without it.
        "ALTER TABLE deltamem_snapshots ADD COLUMN moved {blob} NOT NULL DEFAULT ''",
        "UPDATE deltamem_snapshots SET moved = state",
        "ALTER TABLE deltamem_snapshots DROP COLUMN state",
        "ALTER TABLE deltamem_snapshots RENAME COLUMN moved TO state",
        "CREATE INDEX deltamem_snapshots_thread ON deltamem_snapshots (thread, turn)",
        "CREATE INDEX deltamem_snapshots_key ON deltamem_snapshots (key) WHERE key IS NOT NULL",
        "CREATE INDEX deltamem_entries_message ON deltamem_entries (message_id) WHERE message_id IS NOT NULL",
    ),
    3: (
        "ALTER TABLE deltamem_snapshots ADD COLUMN root TEXT",
        order_and_families,
        # With the counts, so that the least of a key that a million sessions use is found at once.
        "DROP INDEX deltamem_snapshots_key",
        "CREATE INDEX deltamem_snapshots_key ON deltamem_snapshots (key, messages) WHERE key IS NOT NULL",
    ),
}
"""Code, or SQL that SQLite and PostgreSQL both understand; `{blob}` is the one type that they name differently."""

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
    postgresql = connection.dialect.name == "postgresql"
    if postgresql:  # where two processes could both begin; in SQLite a writing transaction is alone
        lock_migrations(connection)
    found = version(connection)
    if postgresql and found < LATEST and read_only(connection):
        raise StoreError(
            f"this store has {f'schema version {found}' if found else 'no tables yet'}, expected version {LATEST}, and "
            "its database is read-only: open it once where it can be written, such as the primary, which upgrades it"
        )
    for number in range(found + 1, LATEST + 1):
        for step in MIGRATIONS[number]:
            if isinstance(step, str):
                connection.execute(text(step.format(blob="BYTEA" if postgresql else "BLOB")))
            else:
                step(connection)
        connection.execute(text("UPDATE deltamem_meta SET value = :step WHERE key = 'schema'"), {"step": str(number)})
