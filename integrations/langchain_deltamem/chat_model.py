"""`ChatDeltaMem`: a chat model on your own Hugging Face model, with persistent memory by naming a session."""

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import AliasChoices, ConfigDict, Field, model_validator

from deltamem_agents import DeltaMemEngine, GenerationOptions, SessionError, StateStore, Turn
from langchain_deltamem.engines import shared_engine
from langchain_deltamem.errors import langchain_errors
from langchain_deltamem.messages import HANDLE, to_engine
from langchain_deltamem.sessions import SessionChatModel

ENGINE = ("model", "adapter", "store", "device", "dtype")
SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
REMOTE = ("api_key", "base_url", "max_retries", "timeout")
"""LangChain's standard parameters that a model in this process has no use for."""


class ChatDeltaMem(SessionChatModel):
    """A chat model whose sessions remember.

    `ChatDeltaMem()` runs the bundled model and adapter. Name a session, and what is said in it is written into a δ-mem
    state that survives restarts; the prompt holds only the recent messages.

        model = ChatDeltaMem(session_id="alice")
        model.invoke("My dog is called Rex.")

    The session of a call is, in this order: the call's `session_id=…`, `config["configurable"]["session_id"]`, the
    model's own `session_id`. Without any, the call is stateless: the frozen model. Calls that LangChain makes for its
    own purposes, such as summarising, never touch the memory.

    LangChain's standard `max_tokens` is another name for `max_new_tokens`. Its standard parameters for remote services
    (api_key, base_url, max_retries, timeout) are accepted with a warning: they mean nothing here.

    Raises:
        DeltaMemError: see `deltamem_agents.errors`; too long a prompt is LangChain's `ContextOverflowError` as well.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: str = "bundled"
    """"bundled", a folder, or a hub id of a causal LM."""
    adapter: str | None = None
    """Folder or hub id of a δ-mem adapter; None takes the default one, which exists for the bundled model."""
    store: StateStore | Path | str | None = Field(default=None, exclude=True, repr=False)
    """Where sessions live: a path, a database URL, ":memory:" (one a process), or None for the default file."""
    device: str | None = None
    """Where to put the model."""
    dtype: str = "auto"
    """Of the backbone's weights."""
    engine: DeltaMemEngine | None = Field(default=None, exclude=True, repr=False)
    """An engine to use; then model, adapter, store, device and dtype are its own."""

    recent_messages: int | None = Field(default=None, ge=0)
    """How many recent messages are also in the prompt, at least; None takes the engine's. 0: the memory alone."""

    max_new_tokens: int | None = Field(default=None, validation_alias=AliasChoices("max_new_tokens", "max_tokens"))
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None

    streaming: bool | None = None
    """True: `invoke` streams too, for callbacks that want tokens. False: `stream` gives one chunk."""
    cache: bool | None = False
    """Off: a cached answer would skip the memory."""

    @model_validator(mode="before")
    @classmethod
    def _without_remote(cls, values: object) -> object:
        if not isinstance(values, dict):  # a model that is a field of another one is validated as it is
            return values
        found = [name for name in REMOTE if values.get(name) is not None]
        if found:
            text = f"{', '.join(found)}: for remote services, without effect on a model in this process"
            warnings.warn(text, UserWarning, stacklevel=3)
        return {name: value for name, value in values.items() if name not in REMOTE}

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        fields = type(self).model_fields
        named = [name for name in ENGINE if getattr(self, name) != fields[name].default]
        if self.engine is not None and named:
            raise ValueError(f"engine is given, so {', '.join(named)} would go unused: give either")
        GenerationOptions.parse({name: getattr(self, name) for name in (*SAMPLING, "stop")})
        return self

    def get_engine(self) -> DeltaMemEngine:
        """The engine behind this model, loaded at the first call and shared with models that ask for the same one."""
        if self.engine is not None:
            return self.engine
        return shared_engine(self.model, self.adapter, self.store, self.device, self.dtype)

    async def _aget_engine(self) -> DeltaMemEngine:
        return self.engine if self.engine is not None else await asyncio.to_thread(self.get_engine)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Not there yet; `with_structured_output` is made from it.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("ChatDeltaMem has no tool calling or structured output yet: use it without tools")

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of a text, by the model's own tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self.get_engine().tokenizer.encode(text, add_special_tokens=False))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A deep copy of the settings, on the same engine and store."""
        memo = {} if memo is None else memo
        memo |= {id(shared): shared for shared in (self.engine, self.store) if shared is not None}
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        """What a pickle holds: settings, no weights.

        Raises:
            TypeError: the model was given an engine, or a store that is no path or URL.
        """
        if self.engine is not None or not isinstance(self.store, str | Path | None):
            raise TypeError(
                "a ChatDeltaMem with an engine or a store object of its own cannot be pickled: they hold a thread or "
                "connections; name model, adapter and a store's path or URL instead"
            )
        return super().__getstate__()

    # --- what BaseChatModel calls

    @property
    def _llm_type(self) -> str:
        return "deltamem"

    @property
    def _model_name(self) -> str:
        if self.engine is None:
            return self.model
        backbone = self.engine.model.backbone
        return backbone.name_or_path or type(backbone).__name__

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self._model_name, "adapter": self.adapter} | {name: getattr(self, name) for name in SAMPLING}

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return super()._get_invocation_params(stop=self.stop if stop is None else stop, **kwargs)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=self.stop if stop is None else stop, **kwargs)
        limit = kwargs.get("max_new_tokens") or kwargs.get("max_tokens") or self.max_new_tokens
        if limit is not None:
            params["ls_max_tokens"] = limit
        return {**params, "ls_provider": "deltamem", "ls_model_name": kwargs.get("model") or self._model_name}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            return self._result(self.get_engine().generate(to_engine(messages), **self._options(stop, kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine = await self._aget_engine()
        with langchain_errors():
            return self._result(await engine.agenerate(to_engine(messages), **self._options(stop, kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with langchain_errors():
            for item in self.get_engine().stream(to_engine(messages), **self._options(stop, kwargs)):
                yield self._chunk(item)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        engine = await self._aget_engine()
        with langchain_errors():
            async for item in engine.astream(to_engine(messages), **self._options(stop, kwargs)):
                yield self._chunk(item)

    def _options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The engine's keywords for one call: the model's own settings, overridden by the call's."""
        if "session_id" not in kwargs:  # `generate` and its kind are called past `invoke`
            kwargs = self._resolved(None, kwargs)
        if "session" in kwargs:
            raise SessionError(f"session={kwargs['session']!r}: a call names its session by session_id=…")
        call = {name: value for name, value in kwargs.items() if value is not None and name != "stream"}
        if "max_new_tokens" not in call and "max_tokens" in call:
            call["max_new_tokens"] = call.pop("max_tokens")
        own = {name: value for name in (*SAMPLING, "recent_messages") if (value := getattr(self, name)) is not None}
        options = {**own, **call}
        options["session"] = options.pop("session_id", None)
        ends = self.stop if stop is None else stop
        return {**options, "stop": () if ends is None else ends}

    def _metadata(self, turn: Turn) -> dict[str, Any]:
        metadata: dict[str, Any] = {"model_name": self._model_name, "finish_reason": turn.finish_reason}
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
