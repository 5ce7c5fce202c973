"""Whose memory does a call of the LLM read? LlamaIndex passes no user and no session, so messages carry it."""

from collections.abc import Sequence
from dataclasses import dataclass

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import Memory
from workflows import Context
from workflows.errors import WorkflowRuntimeError

from deltamem_agents import ConfigError, SessionError
from llama_index_deltamem.asked import stamp_asked
from llama_index_deltamem.block import DeltaMemoryBlock
from llama_index_deltamem.engines import find_engine
from llama_index_deltamem.ledger import last_thread, unanswered
from llama_index_deltamem.memory import DeltaMemory
from llama_index_deltamem.messages import SessionStamp, StampedMessage, to_engine

STATE_ALONE = 0
"""A window of no messages: the prompt holds the conversation already, in one form or another."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Whose memory a call reads, and how much of the conversation is in the prompt."""

    session: str | None
    """None: the frozen model, without memory."""
    thread: str | None = None
    recent_messages: int | None = None
    """None: as many as the engine shows."""


def reading_of(messages: Sequence[ChatMessage], *, engine_id: str, bound: str | None) -> Reading | None:
    """Whose memory a call with these messages reads; None: neither they nor the LLM say.

    Args:
        messages: of the call. Their stamp comes first.
        engine_id: the LLM's engine.
        bound: the session that the LLM is bound to; it comes next.

    Raises:
        SessionError: the messages come from several sessions.
        ConfigError: their memory is on another engine.
    """
    stamp = _stamp_on(messages) or stamp_asked(messages)
    if stamp is None:
        return None if bound is None else reading_of_session(bound, engine_id=engine_id)
    _check_engine(stamp.engine_id, own=engine_id, session=stamp.session_id)
    ours = [message for message in messages if isinstance(message, StampedMessage)]
    open_end = unanswered(to_engine(ours)) if ours else 0
    return Reading(stamp.session_id, stamp.thread, max(stamp.window, open_end))


def reading_of_session(session: str, *, engine_id: str, thread: str | None = None) -> Reading:
    """A session that is named, in the conversation that runs in it, unless another one is named as well."""
    return Reading(session, thread or last_thread(find_engine(engine_id).store, session))


async def reading_of_step(*, engine_id: str) -> Reading | None:
    """What the memory of an agent's run says, inside of its steps; None outside, or where that memory is another kind.

    Its messages are in the prompt already, put into other words, so the state is read alone.

    Raises:
        ConfigError: the memory is on another engine.
    """
    try:
        context = Context.get_step_context()
    except WorkflowRuntimeError:
        return None
    memory = await context.store.get("memory", default=None)
    handle = _block_of(memory) if isinstance(memory, Memory) else memory
    if not isinstance(handle, DeltaMemory | DeltaMemoryBlock):
        return None
    _check_engine(handle.engine_id, own=engine_id, session=handle.session_id)
    return Reading(handle.session_id, recent_messages=STATE_ALONE)


def _stamp_on(messages: Sequence[ChatMessage]) -> SessionStamp | None:
    stamps = [message.delta_session for message in messages if isinstance(message, StampedMessage)]
    sessions = {(stamp.engine_id, stamp.session_id) for stamp in stamps}
    if len(sessions) > 1:
        found = " and ".join(f"{session!r} (engine {engine!r})" for engine, session in sorted(sessions))
        raise SessionError(
            f"these messages come from the memories of sessions {found}: a call reads one memory; pass the others' "
            "messages as plain ChatMessage(role=…, content=…)"
        )
    return stamps[-1] if stamps else None


def _check_engine(found: str, *, own: str, session: str) -> None:
    if found != own and find_engine(found) is not find_engine(own):
        raise ConfigError(
            f"the memory of session {session!r} is on engine {found!r}, but this LLM runs on engine {own!r}: make "
            "both with the same engine"
        )


def _block_of(memory: Memory) -> DeltaMemoryBlock | None:
    return next((block for block in memory.memory_blocks if isinstance(block, DeltaMemoryBlock)), None)
