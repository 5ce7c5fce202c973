"""What an exported session says of itself, as JSON: everything but the states, and nothing that is not checked."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import from_json

from deltamem_agents.store.records import Entry, Kind, Snapshot

FORMAT = 1


def _utc(time: datetime) -> datetime:
    if time.utcoffset() != timedelta(0):
        raise ValueError("expected a time in UTC")
    return time.replace(tzinfo=UTC)


def _object(text: str | None) -> str | None:
    if text is not None and not isinstance(from_json(text), dict):
        raise ValueError("expected a message as a JSON object")
    return text


Count = Annotated[int, Field(ge=0, lt=2**31)]
"""As many as every database can count."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Message(_Record):
    """An `Entry`."""

    role: str
    digest: str
    message_id: str | None
    text: Annotated[str | None, AfterValidator(_object)]
    tokens: Count
    written: bool


class Turn(_Record):
    """A `Snapshot` without its state, and without what is new in each store: ids and the session's name."""

    thread: str
    turn: Count
    messages: Count
    thread_messages: Count
    thread_tokens: Count
    fingerprint: str
    created_at: Annotated[AwareDatetime, AfterValidator(_utc)]
    kind: Kind
    key: str | None
    note: str | None
    entries: tuple[Message, ...]

    @classmethod
    def of(cls, snapshot: Snapshot) -> Self:
        """Describes a snapshot."""
        kept = {field: getattr(snapshot, field) for field in cls.model_fields if field != "entries"}
        entries = tuple(
            Message(**{field: getattr(entry, field) for field in Message.model_fields}) for entry in snapshot.entries
        )
        return cls(**kept, entries=entries)

    def to_snapshot(self, *, id: str, parent: str | None, session: str, state: bytes) -> Snapshot:
        """Makes a new snapshot of what is described."""
        kept = {field: getattr(self, field) for field in type(self).model_fields if field != "entries"}
        entries = tuple(Entry(**message.model_dump()) for message in self.entries)
        return Snapshot(**kept, id=id, parent=parent, session=session, state=state, entries=entries)


class Manifest(_Record):
    """A session: the turns of its line, oldest first, each the parent of the next."""

    format: Annotated[int, Field(ge=1, le=FORMAT)]
    name: Annotated[str, Field(min_length=1)]
    turns: Annotated[tuple[Turn, ...], Field(min_length=1)]


class _Format(BaseModel):
    format: int


def format_of(data: bytes) -> int | None:
    """Which format a manifest has, whatever else may be in it; None if it doesn't say."""
    try:
        return _Format.model_validate_json(data, strict=True).format
    except ValueError:
        return None
