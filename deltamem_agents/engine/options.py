"""What may be asked of one call, and of an engine, as keywords."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from deltamem_agents.backbone.tools import ToolLike
from deltamem_agents.engine.records import MemoryMode, Transcript
from deltamem_agents.store import StateStore


class ReplyOptions(TypedDict, total=False):
    """How a reply is made; each may be left out or None."""

    recent_messages: int | None
    """How many recent messages are also in the prompt, at least; overrides the engine's."""
    memory: MemoryMode
    """"read_write", "read" (nothing is kept) or "off" (the frozen model)."""
    max_new_tokens: int | None
    """At most this many tokens are generated."""
    temperature: float | None
    """None or 0: greedy. Otherwise tokens are sampled at this temperature."""
    top_p: float | None
    """Sample among the most probable tokens that make up this share."""
    top_k: int | None
    """Sample among this many most probable tokens."""
    repetition_penalty: float | None
    """Above 1: makes tokens that have occurred less likely."""
    no_repeat_ngram_size: int | None
    """No reply in free text holds a run of so many tokens twice; 0: it may; None: as the model's config says."""
    seed: int | None
    """Makes sampling repeatable."""
    stop: str | Sequence[str] | None
    """The reply ends before the first of these strings."""
    logprobs: int | None
    """Also give the log-probability of each token (`Turn.logprobs`), and of this many most probable others."""
    response_format: Mapping[str, object] | None
    """What the whole reply is held to; see `GenerationOptions.response_format`."""
    tools: Sequence[ToolLike] | None
    """Tools that may be called: calls come as `Turn.reply.tool_calls`."""
    tool_choice: object
    """"auto", "none", "required" or a tool's name."""
    parallel_tool_calls: bool | None
    """False: a reply holds one call at most."""


class TurnOptions(ReplyOptions, total=False):
    """How a reply is made, and whose memory takes part."""

    session: str | None
    """Whose memory; None: the frozen model without memory."""
    thread: str | None
    """A label for this line of conversation, where one session has several at a time; by default "main"."""


class EngineOptions(TypedDict, total=False):
    """The keywords of `DeltaMemEngine`, documented there."""

    store: StateStore | str | Path | None
    recent_messages: int
    max_prompt_tokens: int | None
    transcript: Transcript
    keep_snapshots: int | None
    cache_bytes: int
    max_batch: int
    prefill_chunk: int
