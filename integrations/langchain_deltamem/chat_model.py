"""`ChatDeltaMem`: a chat model on your own Hugging Face model, with persistent memory by naming a session."""

import asyncio
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import AliasChoices, ConfigDict, Field, SecretStr, field_validator, model_validator

from deltamem_agents import (
    DeltaMemEngine,
    Engine,
    GenerationOptions,
    RemoteEngine,
    StateStore,
    Turn,
    located_model,
    located_store,
    shared_engine,
)
from langchain_deltamem.calls import EngineCall
from langchain_deltamem.engines import remote_engine
from langchain_deltamem.errors import ChatConfigError, check_open, langchain_errors
from langchain_deltamem.messages import to_engine
from langchain_deltamem.profiles import model_profile
from langchain_deltamem.sessions import SessionChatModel
from langchain_deltamem.structured import Method, Schema, checked_format, parser, schema_keywords, with_raw
from langchain_deltamem.tools import ToolLike, engine_tools, tool_keywords

ENGINE = ("model", "adapter", "store", "device", "dtype", "model_kwargs")
SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
REMOTE = ("api_key", "base_url", "max_retries", "timeout")
"""LangChain's standard parameters that a model in this process has no use for."""
SERVER = ("api_key", "base_url", "timeout")
"""Those of them that reach a server."""


class ChatDeltaMem(SessionChatModel):
    """A chat model whose sessions remember.

    `ChatDeltaMem()` runs the bundled model and adapter. Name a session, and what is said in it is written into a δ-mem
    state that survives restarts; the prompt holds only the recent messages.

        model = ChatDeltaMem(session_id="alice")
        model.invoke("My dog is called Rex.")

    The session of a call is, in this order: the call's `session_id=…`, `config["configurable"]["session_id"]`, the
    model's own `session_id`. Without any, the call is stateless: the frozen model. Calls that LangChain makes for its
    own purposes, such as summarising, never touch the memory.

    `ChatDeltaMem(base_url="http://…")` asks a server that `deltamem serve` runs, and is the same in all else.

    LangChain's standard `max_tokens` is another name for `max_new_tokens`. Its standard parameters for remote services
    (api_key, max_retries, timeout) are accepted with a warning where they mean nothing.

    Raises:
        DeltaMemError: see `deltamem_agents.errors`; too long a prompt is LangChain's `ContextOverflowError` as well.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: str = "bundled"
    """"bundled", a folder, or a hub id of a causal LM. Paths are meant from where the model is made."""
    adapter: str | None = None
    """Folder or hub id of a δ-mem adapter; None takes the one that ships for the model, if one does."""
    store: StateStore | Path | str | None = Field(default=None, exclude=True, repr=False)
    """Where sessions live: a path, a database URL, ":memory:" (one a process), or None for the default file."""
    device: str | None = None
    """Where to put the model."""
    dtype: str = "auto"
    """Of the backbone's weights."""
    model_kwargs: dict[str, Any] | None = Field(default=None, exclude=True, repr=False)
    """Anything else transformers' `from_pretrained` takes, such as `revision`, `token` or `quantization_config`."""
    engine: Engine | None = Field(default=None, exclude=True, repr=False)
    """An engine to use; then model, adapter, store, device, dtype and model_kwargs are its own."""
    base_url: str | None = None
    """A server to use; likewise. Sessions are those that the key opens."""
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """What the server asks for, if it does."""
    timeout: float | None = None
    """How many seconds an answer of the server may take; None: ten minutes."""

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
        meant = SERVER if values.get("base_url") is not None else ()
        found = [name for name in REMOTE if name not in meant and values.get(name) is not None]
        if found:
            text = f"{', '.join(found)}: for remote services, without effect on a model in this process"
            warnings.warn(text, UserWarning, stacklevel=3)
        return {name: value for name, value in values.items() if name not in REMOTE or name in meant}

    @field_validator("model", "adapter")
    @classmethod
    def _located(cls, name: str | None) -> str | None:
        return None if name is None else located_model(name)

    @field_validator("store")
    @classmethod
    def _located_store(cls, store: StateStore | Path | str | None) -> StateStore | str | None:
        return None if store is None else located_store(store)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        fields = type(self).model_fields
        named = [name for name in ENGINE if getattr(self, name) != fields[name].default]
        named += ["base_url"] if self.engine is not None and self.base_url is not None else []
        given = "engine" if self.engine is not None else "base_url" if self.base_url is not None else None
        if given is not None and named:
            raise ValueError(f"{given} is given, so {', '.join(named)} would go unused: give either")
        GenerationOptions.parse({name: getattr(self, name) for name in (*SAMPLING, "stop")})
        return self

    def get_engine(self) -> Engine:
        """The engine behind this model, loaded at the first call and shared with models that ask for the same one."""
        if self.engine is not None:
            return check_open(self.engine)
        if self.base_url is not None:
            key = None if self.api_key is None else self.api_key.get_secret_value()
            with langchain_errors():
                return remote_engine(self.base_url, key, self.timeout)
        return self._shared(self.model, self.adapter)

    def bind_tools(
        self,
        tools: Sequence[ToolLike],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        response_format: dict[str, Any] | type | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools that it may call. What it calls is valid by the tools' schemas, always.

        Args:
            tools: LangChain tools, functions, pydantic classes, dataclasses, TypedDicts, JSON schemas, or dicts in
                OpenAI's, Anthropic's or Bedrock's style.
            tool_choice: None or "auto": the model decides. "any", "required" or True: the reply is a call of any tool.
                A tool's name, or OpenAI's dict with one: a call of that tool. "none" or False: no call.
            parallel_tool_calls: False: a reply holds one call at most.
            strict: True: all properties are required, there are no others, and what cannot be enforced of a schema,
                such as look-around in patterns, is an error. None: it is let pass, with a warning. False: without.
            response_format: what a reply that calls no tool must be: a pydantic class, a dataclass, a TypedDict, or
                OpenAI's dict.
            **kwargs: further keywords of the calls.

        Raises:
            ConfigError: a tool that is described badly, or a choice that cannot be.
        """
        given = tool_keywords(tools, choice=tool_choice, parallel=parallel_tool_calls, strict=strict)
        if response_format is not None:
            given["response_format"] = checked_format(response_format, strict=strict)
        return self.bind(**given, **kwargs)

    def with_structured_output(
        self,
        schema: Schema | None = None,
        *,
        method: Method = "function_calling",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """This model with replies that are objects, valid by a schema.

        Args:
            schema: a pydantic class or a dataclass, of which the objects are then, or a TypedDict or JSON schema:
                dicts. None: any JSON object, with "json_mode".
            method: "function_calling": a forced call of one tool. "json_schema": the reply's text is held to the
                schema. "json_mode": the same, without a word about what cannot be enforced of it. In each case the
                prompt shows the schema and its descriptions, and nothing of that is written into memory.
            include_raw: give `{"raw": message, "parsed": object, "parsing_error": error}` and never fail in parsing.
            strict: True: all properties are required, there are no others, and what cannot be enforced is an error.
            **kwargs: further keywords of the calls.

        Raises:
            ConfigError: an unknown method, or no schema can be made of what is given.
            GenerationError: nothing can be generated for the schema.
        """
        with langchain_errors():
            given = schema_keywords(schema, method=method, strict=strict)
        model, parse = self.bind(**given, **kwargs), parser(schema, method)
        return with_raw(model, parse) if include_raw else model | parse

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[ToolLike] | None = None) -> int:
        """Tokens of a prompt that shows these messages and tools, by the model's own template."""
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens_from_messages(messages, tools)
        if not messages:
            return 0
        with langchain_errors():
            described = engine_tools(tools) if tools else None
            return self.get_engine().count_tokens(to_engine(messages), tools=described)

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of a text, by the model's own tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.get_engine().token_ids(text)

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
        if self.engine is not None:
            return self.engine.model_name
        return self.model if self.base_url is None else self.base_url

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

    def _resolve_model_profile(self) -> ModelProfile:
        return model_profile(self._model_name, None if self.engine is None else self.engine.context)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            call = self._call(messages, stop, kwargs)
            return call.result(self._engine_for(call).generate(call.messages, **call.options))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            call = self._call(messages, stop, kwargs)
            engine = await self._aengine_for(call)
            return call.result(await engine.agenerate(call.messages, **call.options))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with langchain_errors():
            call = self._call(messages, stop, kwargs)
            for item in self._engine_for(call).stream(call.messages, **call.options):
                yield call.chunk(item)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with langchain_errors():
            call = self._call(messages, stop, kwargs)
            engine = await self._aengine_for(call)
            items = cast("AsyncGenerator[str | Turn]", engine.astream(call.messages, **call.options))
            async with aclosing(items):  # a reader who leaves early is known to have left
                async for item in items:
                    yield call.chunk(item)

    def _call(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> EngineCall:
        if "session_id" not in kwargs:  # `generate` and its kind are called past `invoke`
            kwargs = self._resolved(None, kwargs)
        own = {name: value for name in (*SAMPLING, "recent_messages") if (value := getattr(self, name)) is not None}
        return EngineCall.parse(
            messages,
            keywords=kwargs,
            settings=own,
            stop=self.stop if stop is None else stop,
            model=self._model_name,
            adapter=self.adapter,
        )

    def _engine_for(self, call: EngineCall) -> Engine:
        if self._is_own(call):
            return self.get_engine()
        if self.base_url is not None or isinstance(self.engine, RemoteEngine):
            raise ChatConfigError(
                f"the server runs a model of its own, not {call.model!r}: leave model and adapter out"
            )
        return self._shared(call.model, call.adapter)

    async def _aengine_for(self, call: EngineCall) -> Engine:
        if self.engine is not None and self._is_own(call):
            return self.get_engine()
        return await asyncio.to_thread(self._engine_for, call)  # it may have to be loaded

    def _shared(self, model: str, adapter: str | None) -> DeltaMemEngine:
        with langchain_errors():
            return shared_engine(
                model,
                adapter=adapter,
                store=self.store if self.engine is None else self.engine.store,
                device=self.device,
                dtype=self.dtype,
                model_kwargs=self.model_kwargs,
            )

    def _is_own(self, call: EngineCall) -> bool:
        return (call.model, call.adapter) == (self._model_name, self.adapter)
