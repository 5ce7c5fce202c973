"""One call of the engine: what LangChain asks for, put as the engine takes it, and the answer put back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from deltamem_agents import Message, SessionError, Turn
from langchain_deltamem.errors import check_options
from langchain_deltamem.messages import HANDLE, in_system_prompt, last_chunk, reply_message, summaries, to_engine
from langchain_deltamem.sessions import session_name
from langchain_deltamem.structured import as_format, format_prompt
from langchain_deltamem.tools import is_forced

BESIDE = ("session", "thread", "memory", "recent_messages", "tools", "tool_choice", "parallel_tool_calls")
"""What the engine takes beside the options of a generation."""
LANGCHAINS = ("stream", "ls_structured_output_format")
"""Keywords of a call that are meant for LangChain itself."""


@dataclass(frozen=True, slots=True)
class EngineCall:
    """Messages and options of one call, and which model it is for."""

    messages: list[Message]
    options: dict[str, Any]
    model: str
    adapter: str | None
    forced: bool
    """Whether the reply must be a tool call."""

    @classmethod
    def parse(
        cls,
        messages: Sequence[BaseMessage],
        *,
        keywords: Mapping[str, Any],
        settings: Mapping[str, Any],
        stop: Sequence[str] | None,
        model: str,
        adapter: str | None,
    ) -> Self:
        """Checks a call.

        Args:
            messages: LangChain's.
            keywords: of the call; None: not given.
            settings: of the chat model, for what the call doesn't say.
            stop: strings that end the reply.
            model: what runs where the call names no other.
            adapter: likewise.

        Raises:
            MessageError: messages that the model cannot take.
            GenerationError: unknown options, or bad values.
            SessionError: the session is named by the engine's keyword.
        """
        if "session" in keywords:
            raise SessionError(f"session={keywords['session']!r}: a call names its session by session_id=…")
        call = {name: value for name, value in keywords.items() if value is not None and name not in LANGCHAINS}
        other, its_adapter, strict = (call.pop(name, None) for name in ("model", "adapter", "strict"))
        if "max_new_tokens" not in call and "max_tokens" in call:
            call["max_new_tokens"] = call.pop("max_tokens")
        if "response_format" in call:
            call["response_format"] = as_format(call["response_format"], strict=strict)
        options = {**settings, **call, "stop": () if stop is None else stop}
        session = options["session"] = session_name(options.pop("session_id", None))
        check_options({name: value for name, value in options.items() if name not in BESIDE})
        alone = session is None or options.get("memory") == "off"
        forced = is_forced(options.get("tool_choice"))
        told = [] if alone else summaries(messages)  # the memory has what they sum up
        said = to_engine([m for m in messages if m not in told], whole=alone)
        notes = [str(message.text) for message in told]
        notes += [] if forced else format_prompt(options.get("response_format"))
        return cls(in_system_prompt(said, notes), options, other or model, its_adapter or adapter, forced)

    def result(self, turn: Turn) -> ChatResult:
        """The whole answer."""
        message = reply_message(turn, self._metadata(turn), forced=self.forced)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def chunk(self, item: str | Turn) -> ChatGenerationChunk:
        """A piece of the answer: text, or at the end everything else, once."""
        if isinstance(item, str):
            return ChatGenerationChunk(message=AIMessageChunk(content=item))
        return ChatGenerationChunk(message=last_chunk(item, self._metadata(item), forced=self.forced))

    def _metadata(self, turn: Turn) -> dict[str, Any]:
        reason = "tool_calls" if turn.reply.tool_calls and turn.finish_reason == "stop" else turn.finish_reason
        metadata: dict[str, Any] = {"model_name": self.model, "finish_reason": reason}
        if turn.snapshot is not None:
            metadata[HANDLE] = {"session": turn.session, "snapshot": turn.snapshot}
        return metadata
