"""`ChatDeltaMem`: a chat model on your own Hugging Face model, with persistent memory by naming a session."""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.exceptions import ContextOverflowError as LangChainContextOverflowError
from langchain_core.language_models import LanguageModelInput, LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig, ensure_config
from pydantic import ConfigDict, Field, model_validator

from deltamem_agents import ContextOverflowError, DeltaMemEngine, MemoryMode, StateStore, Turn
from langchain_deltamem.engines import shared_engine
from langchain_deltamem.messages import HANDLE, to_engine


class ChatDeltaMem(BaseChatModel):
    """A chat model whose sessions remember.

    `ChatDeltaMem()` runs the bundled model and adapter. Name a session, and what is said in it is written into a δ-mem
    state that survives restarts; the prompt holds only the recent messages.

        model = ChatDeltaMem(session_id="alice")
        model.invoke("My dog is called Rex.")

    The session of a call is, in this order: the call's `session_id=…`, `config["configurable"]["session_id"]`, the
    model's own `session_id`. Without any, the call is stateless: the frozen model. Calls that LangChain makes for its own
    purposes, such as summarising, never touch the memory.

    Raises:
        DeltaMemError: see `deltamem_agents.errors`; too long a prompt raises LangChain's own `ContextOverflowError`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: str = "bundled"
    """"bundled", a folder, or a hub id of a causal LM."""
    adapter: str | None = None
    """Folder or hub id of a δ-mem adapter; None takes the default one, which exists for the bundled model."""
    store: StateStore | Path | str | None = Field(default=None, exclude=True)
    """Where sessions live: a path, a database URL, ":memory:", or None for the default file."""
    device: str | None = None
    """Where to put the model."""
    dtype: str = "auto"
    """Of the backbone's weights."""
    engine: DeltaMemEngine | None = Field(default=None, exclude=True)
    """An engine to use; then model, adapter, store, device and dtype are its own."""

    session_id: str | None = None
    """Whose memory is used where a call names none."""
    memory: MemoryMode = "read_write"
    """"read_write", "read" (nothing is kept) or "off" (the frozen model)."""
    recent_messages: int | None = None
    """How many recent messages are also in the prompt, at least; None takes the engine's. 0: the memory alone."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None

    cache: bool | None = False
    """Off: a cached answer would skip the memory."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = self.model_fields_set & {"model", "adapter", "store", "device", "dtype"}
        if self.engine is not None and named:
            raise ValueError(f"engine is given, so {', '.join(sorted(named))} would go unused: give either")
        return self

    def get_engine(self) -> DeltaMemEngine:
        """The engine behind this model, loaded at the first call and shared with models that ask for the same one."""
        if self.engine is not None:
            return self.engine
        return shared_engine(self.model, self.adapter, self.store, self.device, self.dtype)

    def with_session(self, session_id: str) -> Self:
        """This model, on the same engine, with another session."""
        return self.model_copy(update={"session_id": session_id})

    # --- LangChain's public calls: the only place where the config, and with it the session, can be seen

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AIMessage:
        """One reply; see the class for how its session is found."""
        return super().invoke(input, config, stop=stop, **self._resolved(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AIMessage:
        """`invoke` for an event loop, which it never blocks."""
        return await super().ainvoke(input, config, stop=stop, **self._resolved(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """The reply as it comes. Leaving early keeps nothing of the turn."""
        return super().stream(input, config, stop=stop, **self._resolved(config, kwargs))

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """`stream` for an event loop."""
        return super().astream(input, config, stop=stop, **self._resolved(config, kwargs))

    def _resolved(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The call's keywords with session, thread and memory mode filled in from the config."""
        full = ensure_config(config)
        configurable = full.get("configurable", {})
        named = [kwargs.get("session_id"), configurable.get("session_id"), self.session_id]
        session = next((name for name in named if name is not None), None)
        memory = kwargs.get("memory") or ("off" if "lc_source" in full.get("metadata", {}) else self.memory)
        thread = kwargs.get("thread") or configurable.get("thread_id")
        return {**kwargs, "session_id": session, "memory": memory, "thread": thread}

    # --- what BaseChatModel calls

    @property
    def _llm_type(self) -> str:
        return "deltamem"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model", "adapter", "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
        return {name: getattr(self, name) for name in names}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        return {**params, "ls_provider": "deltamem", "ls_model_name": self.model}

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of a text, by the model's own tokenizer."""
        return list(self.get_engine().tokenizer.encode(text, add_special_tokens=False))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        try:
            turn = self.get_engine().generate(to_engine(messages), **self._options(stop, kwargs))
        except ContextOverflowError as error:
            raise LangChainContextOverflowError(str(error)) from error
        return self._result(turn)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        try:
            turn = await self.get_engine().agenerate(to_engine(messages), **self._options(stop, kwargs))
        except ContextOverflowError as error:
            raise LangChainContextOverflowError(str(error)) from error
        return self._result(turn)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        try:
            for item in self.get_engine().stream(to_engine(messages), **self._options(stop, kwargs)):
                yield self._chunk(item)
        except ContextOverflowError as error:
            raise LangChainContextOverflowError(str(error)) from error

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        try:
            async for item in self.get_engine().astream(to_engine(messages), **self._options(stop, kwargs)):
                yield self._chunk(item)
        except ContextOverflowError as error:
            raise LangChainContextOverflowError(str(error)) from error

    def _options(self, stop: Sequence[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The engine's keywords for one call: the model's own settings, overridden by the call's."""
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "recent_messages")
        options = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        options |= {name: value for name, value in kwargs.items() if value is not None}
        options["session"] = options.pop("session_id", None)
        options.setdefault("memory", self.memory)
        ends = stop if stop is not None else self.stop
        return {**options, "stop": tuple(ends)} if ends else options

    def _metadata(self, turn: Turn) -> dict[str, Any]:
        metadata: dict[str, Any] = {"model_name": self.model, "finish_reason": turn.finish_reason}
        if turn.snapshot is not None:
            metadata[HANDLE] = {"session": turn.session, "snapshot": turn.snapshot}
        return metadata

    def _result(self, turn: Turn) -> ChatResult:
        message = AIMessage(
            content=turn.reply.content, response_metadata=self._metadata(turn), usage_metadata=_usage(turn)
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunk(self, item: str | Turn) -> ChatGenerationChunk:
        if isinstance(item, str):
            return ChatGenerationChunk(message=AIMessageChunk(content=item))
        last = AIMessageChunk(
            content="", response_metadata=self._metadata(item), usage_metadata=_usage(item), chunk_position="last"
        )
        return ChatGenerationChunk(message=last)


def _usage(turn: Turn) -> UsageMetadata:
    usage = turn.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details={"cache_read": usage.cached_tokens},
    )
