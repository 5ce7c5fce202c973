"""The tables as queries see them, and how rows become records. `migrations` is what creates them."""

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import groupby
from typing import cast

from sqlalchemy import Column, Integer, LargeBinary, MetaData, Row, Select, Table, Text, select

from deltamem_agents.store.records import Entry, Kind, SessionInfo, Snapshot

metadata = MetaData()

meta = Table("deltamem_meta", metadata, Column("key", Text, primary_key=True), Column("value", Text))

snapshots = Table(
    "deltamem_snapshots",
    metadata,
    Column("id", Text, primary_key=True),
    Column("parent", Text),
    Column("session", Text),
    Column("thread", Text),
    Column("turn", Integer),
    Column("messages", Integer),
    Column("fingerprint", Text),
    Column("created_at", Text),  # ISO 8601, UTC: SQLite knows no time zones
    Column("kind", Text),
    Column("thread_messages", Integer),
    Column("thread_tokens", Integer),
    Column("key", Text),
    Column("note", Text),
    Column("state", LargeBinary),  # behind all that queries ask for: SQLite reads those without it
    Column("root", Text),  # its family: the snapshot that its tree began with
)

entries = Table(
    "deltamem_entries",
    metadata,
    Column("snapshot", Text, primary_key=True),
    Column("position", Integer, primary_key=True),  # on the line, from 0
    Column("role", Text),
    Column("digest", Text),
    Column("message_id", Text),
    Column("written", Integer),
    Column("text", Text),
    Column("entry_tokens", Integer),
)

sessions = Table(
    "deltamem_sessions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("head", Text),
    Column("created_at", Text),
    Column("updated_at", Text),
)

# Turns and entries in one statement, hence in one consistent view on every database; a turn without entries is one row.
TURNS: Select[tuple[object, ...]] = (
    select(*(column for column in snapshots.c if column.name not in ("state", "root")), *entries.c)
    .outerjoin_from(snapshots, entries, entries.c.snapshot == snapshots.c.id)
    .order_by(snapshots.c.turn, snapshots.c.id, entries.c.position)
)


def now() -> str:
    """The time as a column keeps it."""
    return datetime.now(UTC).isoformat()


def to_rows(snapshot: Snapshot, *, root: str | None) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Turns a snapshot of a family into its row and the rows of its entries."""
    fields = (column.name for column in snapshots.c if column.name != "root")
    row: dict[str, object] = {field: getattr(snapshot, field) for field in fields} | {"root": root}
    row["created_at"] = snapshot.created_at.astimezone(UTC).isoformat()
    return row, [
        {
            "snapshot": snapshot.id,
            "position": position,
            "role": entry.role,
            "digest": entry.digest,
            "message_id": entry.message_id,
            "written": int(entry.written),
            "text": entry.text,
            "entry_tokens": entry.tokens,
        }
        for position, entry in enumerate(snapshot.entries, snapshot.start)
    ]


def to_snapshots(rows: Iterable[Row[tuple[object, ...]]]) -> list[Snapshot]:
    """Puts the rows of `TURNS` together again, without states."""
    return [_snapshot(list(group)) for _, group in groupby(rows, key=lambda row: row.id)]


def _snapshot(rows: list[Row[tuple[object, ...]]]) -> Snapshot:
    row = rows[0]
    return Snapshot(
        id=row.id,
        parent=row.parent,
        session=row.session,
        thread=row.thread,
        turn=row.turn,
        messages=row.messages,
        thread_messages=row.thread_messages,
        thread_tokens=row.thread_tokens,
        fingerprint=row.fingerprint,
        created_at=datetime.fromisoformat(row.created_at),
        kind=cast(Kind, row.kind),
        key=row.key,
        note=row.note,
        state=b"",
        entries=tuple(_entry(row) for row in rows if row.position is not None),
    )


def _entry(row: Row[tuple[object, ...]]) -> Entry:
    return Entry(
        role=row.role,
        digest=row.digest,
        message_id=row.message_id,
        text=row.text,
        tokens=row.entry_tokens,
        written=bool(row.written),
    )


def to_info(row: Row[tuple[object, ...]]) -> SessionInfo:
    """Sums a session up from its row, joined to its head's."""
    return SessionInfo(
        name=row.name,
        head=row.head,
        fingerprint=row.fingerprint,
        created_at=datetime.fromisoformat(row.created_at),
        updated_at=datetime.fromisoformat(row.updated_at),
        turns=row.turn or 0,
        messages=row.messages or 0,
        state_bytes=row.state_bytes or 0,
    )
