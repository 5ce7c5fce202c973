"""What a store keeps: snapshots with their ledger entries, and sessions that point at them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Kind = Literal["turn", "absorb"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One message of the ledger, in the order in which it came."""

    role: str
    """Who spoke."""
    digest: str
    """Identifies the message's content, also when its text is not kept."""
    message_id: str | None
    """The id that the caller's framework gave it."""
    text: str | None
    """The message as JSON; None when the transcript policy keeps no texts."""
    tokens: int
    """How many tokens the message takes in a prompt."""
    written: bool
    """Whether the message went into the state, or was only shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An immutable commit: the state after a turn, and what the turn added."""

    id: str
    """Unique in the store."""
    parent: str | None
    """The snapshot that the turn started from; None for the start of a line, also of a pruned one."""
    session: str
    """The session that owns the snapshot: the one whose turn made it, or its heir after `StateStore.forget`."""
    thread: str
    """The label of the conversation that made it: several may share a session."""
    turn: int
    """Depth on its line; the first turn is 1. Pruning changes no depth."""
    messages: int
    """How many messages its line holds up to and including this turn. Pruning changes no count."""
    thread_messages: int
    """How many messages of its thread its line holds up to and including this turn. Pruning changes no count."""
    thread_tokens: int
    """How many tokens these messages of its thread take in a prompt. Pruning changes no count."""
    fingerprint: str
    """Of the backbone and adapter that the state belongs to."""
    created_at: datetime
    """When the turn was complete; aware, UTC."""
    state: bytes
    """The state as a safetensors blob; empty when it was loaded without."""
    entries: tuple[Entry, ...]
    """The messages that this turn added."""
    kind: Kind
    """A turn with a reply, or messages that were only absorbed."""
    key: str | None = None
    """The caller's key of an absorption: a retry with the same key absorbs nothing twice."""
    note: str | None = None
    """What somebody who reads the log should know, such as why a message could not be undone."""

    @property
    def start(self) -> int:
        """The position on the line of this turn's first message, counted from 0."""
        return self.messages - len(self.entries)

    @property
    def thread_start(self) -> int:
        """The position in its thread of this turn's first message, counted from 0."""
        return self.thread_messages - len(self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session, summed up. Everything but the times describes its head and is empty when it has none."""

    name: str
    head: str | None
    fingerprint: str | None
    created_at: datetime
    updated_at: datetime
    """When the head last moved."""
    turns: int
    """Turns on the line, pruned ones included."""
    messages: int
    """Messages on the line, pruned ones included."""
    state_bytes: int
    """Size of the head's state."""


def age(snapshot: Snapshot) -> tuple[datetime, int, str]:
    """Sorts snapshots of several lines, oldest first. Clocks may err; on one line, `turn` says what came first."""
    return snapshot.created_at, snapshot.turn, snapshot.id
