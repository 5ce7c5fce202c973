"""Which session does a call belong to? LangChain's public calls are the only place where the config can be seen."""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Self

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableConfig, ensure_config

from deltamem_agents import MemoryMode


class SessionChatModel(BaseChatModel):
    """A chat model whose calls carry `session_id`, `memory` and `thread` as keywords, found in this order.

    - session: the call's `session_id=…`, `config["configurable"]["session_id"]`, the model's own, none;
    - memory: the call's `memory=…`, "off" for LangChain's own helper calls (`metadata["lc_source"]`), the model's own;
    - thread: the call's `thread=…`, `config["configurable"]["thread_id"]`, the session's name.

    A call without config takes the one it runs in, such as a graph's.
    """

    session_id: str | None = None
    """Whose memory is used where a call names none."""
    memory: MemoryMode = "read_write"
    """"read_write", "read" (nothing is kept) or "off" (the frozen model)."""

    def with_session(self, session_id: str) -> Self:
        """This model, on the same engine, with another session."""
        return self.model_copy(update={"session_id": session_id})

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """One reply; see the class for how its session is found."""
        return super().invoke(input, config, stop=stop, **self._resolved(config, kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """`invoke` for an event loop, which it never blocks. Cancelling it keeps nothing of the turn."""
        return await super().ainvoke(input, config, stop=stop, **self._resolved(config, kwargs))

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """The reply as it comes. Leaving early keeps nothing of the turn."""
        return super().stream(input, config, stop=stop, **self._resolved(config, kwargs))

    def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """`stream` for an event loop."""
        return super().astream(input, config, stop=stop, **self._resolved(config, kwargs))

    if not TYPE_CHECKING:  # the base's overloads stay their types; version "v3" goes past `stream`

        def stream_events(self, input, config=None, **kwargs):
            """The reply as events."""
            return super().stream_events(input, config, **self._resolved(config, kwargs))

        def astream_events(self, input, config=None, **kwargs):
            """The reply as events, for an event loop."""
            return super().astream_events(input, config, **self._resolved(config, kwargs))

    def _resolved(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The call's keywords with session, memory mode and thread filled in."""
        full = ensure_config(config)
        configurable = full.get("configurable", {})
        named = [kwargs.get("session_id"), configurable.get("session_id"), self.session_id]
        session = next((name for name in named if name is not None), None)
        memory = kwargs.get("memory") or ("off" if "lc_source" in full.get("metadata", {}) else self.memory)
        labels = [kwargs.get("thread"), configurable.get("thread_id")]
        thread = next((str(label) for label in labels if label is not None), None)
        return {**kwargs, "session_id": session, "memory": memory, "thread": None if session is None else thread}
