"""One call of the engine: what LlamaIndex asks for, put as the engine takes it, and the answer put back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole, TextBlock

from deltamem_agents import ConfigError, Message, Turn
from llama_index_deltamem.messages import call_blocks, to_engine
from llama_index_deltamem.sessions import Reading

RESOLVED = ("session_id", "thread", "memory")
"""Keywords of a call that say whose memory is read."""


@dataclass(frozen=True, slots=True)
class EngineCall:
    """Messages and options of one call. It reads a memory, and keeps nothing."""

    messages: list[Message]
    options: dict[str, Any]
    model: str
    tool_names: Mapping[str, str]
    """Tools' own names, where LlamaIndex describes them by others."""

    @classmethod
    def parse(
        cls,
        messages: Sequence[ChatMessage],
        *,
        reading: Reading,
        keywords: Mapping[str, Any],
        settings: Mapping[str, Any],
        model: str,
    ) -> Self:
        """Checks a call.

        Args:
            messages: LlamaIndex's.
            reading: whose memory is read.
            keywords: of the call; None: not given.
            settings: of the LLM, for what neither the call nor the memory says.
            model: what runs.

        Raises:
            MessageError: messages that the model cannot take.
        """
        call = {name: value for name, value in keywords.items() if value is not None and name not in RESOLVED}
        names = call.pop("tool_names", {})
        if "max_tokens" in call:
            call.setdefault("max_new_tokens", call.pop("max_tokens"))
        shown = {} if reading.recent_messages is None else {"recent_messages": reading.recent_messages}
        options = {**settings, **shown, **call}
        if reading.session is None:
            return cls(to_engine(messages, whole=True), options, model, names)
        said = to_engine(messages, session=reading.session)
        spoken = [message for message in said if message.role != "system" or message.id is None]
        options |= {"session": reading.session, "thread": reading.thread, "memory": "read"}
        return cls(spoken or said, options, model, names)  # a system prompt that was put stands in the window already

    def response(self, turn: Turn) -> ChatResponse:
        """The whole answer."""
        reply = turn.reply
        blocks = [TextBlock(text=reply.content)] if reply.content or not reply.tool_calls else []
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=[*blocks, *call_blocks(reply, self.tool_names)])
        tokens = {
            "prompt_tokens": turn.usage.prompt_tokens,
            "completion_tokens": turn.usage.completion_tokens,
            "total_tokens": turn.usage.total_tokens,
        }
        raw = {"model": self.model, "finish_reason": turn.finish_reason, "usage": tokens, "session": turn.session}
        return ChatResponse(message=message, raw=raw, additional_kwargs=dict(tokens))

    def piece(self, text: str, item: str | Turn) -> ChatResponse:
        """A piece of a stream: the text so far, and what is new of it; at the end everything else, once."""
        if isinstance(item, Turn):
            return self.response(item).model_copy(update={"delta": ""})
        return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=item)


def as_completion(response: ChatResponse) -> CompletionResponse:
    """A chat's answer as a completion's."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=response.additional_kwargs,
    )


def check_memory(mode: object) -> None:
    """Checks a memory mode.

    Raises:
        ConfigError: it is another than "read" and "off".
    """
    if mode not in ("read", "off"):
        raise ConfigError(
            f"memory is {mode!r}, expected 'read' or 'off': calls of the LLM keep nothing, DeltaMemory.put does"
        )
