"""What callers ask of the engine and what they get."""

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from deltamem_agents.backbone.tools import ToolUse
from deltamem_agents.errors import SessionError
from deltamem_agents.generation import FinishReason, GenerationOptions, TokenLogprob
from deltamem_agents.messages import Message

MemoryMode = Literal["read_write", "read", "off"]
"""`read_write` keeps the turn; `read` uses the memory and keeps nothing; `off` is the frozen model, with no session."""
MEMORY_MODES: tuple[MemoryMode, ...] = ("read_write", "read", "off")
Transcript = Literal["window", "full", "none"]
"""How long a store keeps messages' texts: as long as their snapshots, for ever (with all snapshots), or not at all."""
TRANSCRIPTS: tuple[Transcript, ...] = ("window", "full", "none")
NAME_LENGTH = 200
MAIN_THREAD = "main"
"""The label of calls that name no thread."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one generation."""

    prompt_tokens: int
    """Tokens of the prompt, those in the KV cache included."""
    completion_tokens: int
    """Tokens generated."""
    cached_tokens: int
    """How many of the prompt's tokens were in the KV cache already."""

    @property
    def total_tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Turn:
    """A reply, and the commit it made."""

    reply: Message
    usage: Usage
    finish_reason: FinishReason
    snapshot: str | None
    """Id of the snapshot that was committed; None when nothing was kept."""
    session: str | None
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Of the reply's tokens; None where nobody asked."""


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What an engine is doing, and has counted since it was made."""

    running: int
    """Turns that decode, and other work under way."""
    waiting: int
    cold_replays: int
    """Turns of known sessions that had no KV cache to go on from."""
    conflicts: int
    """Commits that lost a race, and were made again on the new head."""


@dataclass(frozen=True, slots=True)
class Recollection:
    """What a memory answers to a question."""

    question: str
    answer: str


def new_id() -> str:
    """An id for a snapshot."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call, checked."""

    messages: tuple[Message, ...]
    session: str | None
    thread: str
    memory: MemoryMode
    recent_messages: int
    options: GenerationOptions
    use: ToolUse = field(default_factory=ToolUse)
    """The tools of the call, and what the model may do with them."""
    order: int = 0
    """When the call was made, as counted by its engine: turns committed since then overlap with it."""
    made_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When the call was made, for turns that other processes commit."""
    key: str | None = None
    """The caller's name for an absorption, which makes a retry idempotent."""
    snapshot: str = field(default_factory=new_id)
    """The id of the snapshot that comes of it, if one does."""

    @property
    def remembers(self) -> bool:
        """Whether a memory takes part at all."""
        return self.session is not None and self.memory != "off"


def check_session_name(name: object, *, kind: str = "session") -> str:
    """Returns a valid name of a session, or of a thread.

    Raises:
        SessionError: it is no text, empty, too long, padded with blanks, or holds control characters.
    """
    if not isinstance(name, str):
        raise SessionError(f"a {kind} is named by a string, got {type(name).__name__}: {name!r}")
    if not name or name != name.strip() or not name.isprintable() or len(name) > NAME_LENGTH:
        raise SessionError(
            f"{name[:60]!r} ({len(name)} characters) is not a {kind} name: expected 1 to {NAME_LENGTH} printable "
            "characters without blanks at the ends"
        )
    return name
