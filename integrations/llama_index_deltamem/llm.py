"""`DeltaMemLLM`: your own Hugging Face model as LlamaIndex's LLM, which reads the memory its messages come from."""

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, Literal, Self, cast
from uuid import UUID

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool
from pydantic import ConfigDict, Field, model_validator

from deltamem_agents import ConfigError, Engine, GenerationOptions, StateStore, Turn, located_model
from llama_index_deltamem.calls import EngineCall, as_completion, check_memory
from llama_index_deltamem.engines import find_engine, load_engine, register_engine
from llama_index_deltamem.messages import session_name
from llama_index_deltamem.sessions import STATE_ALONE, Reading, reading_of, reading_of_session, reading_of_step
from llama_index_deltamem.structured import StructuredStreams
from llama_index_deltamem.toolcalls import described_tool

LOADED = ("model", "adapter", "store", "device", "model_kwargs")
"""What an engine is loaded by, which has none of them given."""
SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop")


class DeltaMemLLM(StructuredStreams):
    """An LLM whose calls read a session's memory, and never write it: `DeltaMemory.put` does.

        llm = DeltaMemLLM(engine=engine)
        chat = SimpleChatEngine.from_defaults(llm=llm, memory=DeltaMemory(engine=engine, session_id="alice"))

    `DeltaMemLLM()` loads the bundled model and adapter. One LLM serves all users; whose memory a call reads is, in
    this order: the call's `session_id=…`, the memory that its messages come from, the session that the LLM is bound
    to, in an agent's step the memory of the run. Without any the call is stateless: the frozen model. `complete` reads
    the state alone, without recent messages in front.

    Calls take `max_tokens`, `temperature`, `top_p`, `top_k`, `repetition_penalty`, `seed`, `stop`, `response_format`,
    `session_id`, `thread`, `recent_messages`, and `memory="off"` for a call without memory.

    Raises:
        DeltaMemError: see `deltamem_agents.errors`.
    """

    model_config = ConfigDict(extra="forbid")

    engine_id: str = ""
    """What the engine is registered as."""
    model: str | None = None
    """"bundled", a folder, or a hub id of a causal LM; None: an engine was given."""
    adapter: str | None = None
    """Folder or hub id of a δ-mem adapter; None takes the one that ships for the model, if one does."""
    store: StateStore | Path | str | None = Field(default=None, exclude=True, repr=False)
    """Where sessions live: a path, a database URL, ":memory:", or None for the default file."""
    device: str | None = None
    """Where to put the model."""
    dtype: str = "auto"
    """Of the backbone's weights."""
    model_kwargs: dict[str, Any] | None = Field(default=None, exclude=True, repr=False)
    """Anything else transformers' `from_pretrained` takes, such as `revision`, `token` or `quantization_config`."""

    session_id: str | None = None
    """Whose memory is read where neither the call nor its messages say."""
    memory: Literal["read", "off"] = "read"
    """"off": the frozen model, such as for an LLM that tools use."""
    recent_messages: int | None = Field(default=None, ge=0)
    """How many recent messages the engine shows where no `DeltaMemory` says; None: the engine's own."""

    max_new_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None

    def __init__(self, *, engine: Engine | None = None, **data: Any) -> None:
        place = {name: data[name] for name in LOADED if data.get(name) is not None}
        if engine is not None:
            if place:
                raise ConfigError(f"engine is given, so {', '.join(place)} would go unused: give either")
            data["engine_id"] = register_engine(engine, data.get("engine_id"))
        elif place or not data.get("engine_id"):
            data["model"] = located_model(data.get("model") or "bundled")
            data["engine_id"] = load_engine(
                data["model"],
                adapter=data.get("adapter"),
                store=data.get("store"),
                device=data.get("device"),
                dtype=data.get("dtype", "auto"),
                model_kwargs=data.get("model_kwargs"),
                name=data.get("engine_id"),
            )
        if data.get("session_id") is not None:
            data["session_id"] = session_name(data["session_id"])
        if "max_tokens" in data:
            data.setdefault("max_new_tokens", data.pop("max_tokens"))
        super().__init__(**data)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        GenerationOptions.parse({name: getattr(self, name) for name in SAMPLING})
        return self

    @classmethod
    def class_name(cls) -> str:
        """LlamaIndex's name of the class."""
        return "DeltaMemLLM"

    @property
    def engine(self) -> Engine:
        """The engine, found by its name.

        Raises:
            EngineNotFoundError: this process has none of this name.
        """
        return find_engine(self.engine_id)

    @property
    def metadata(self) -> LLMMetadata:
        """The context of the backbone in tokens, and what the model can do; calls are held to their tools' schemas."""
        return LLMMetadata(
            context_window=self.engine.context,
            num_output=self.max_new_tokens,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self._model_name,
        )

    def with_session(self, session_id: str | int | UUID) -> Self:
        """This LLM, on the same engine, bound to a session."""
        return self.model_copy(update={"session_id": session_name(session_id)})

    # --- the eight calls

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """One reply. In a step of a workflow use `achat`: only that can look for the run's memory."""
        call = self._call(messages, kwargs)
        return call.response(self.engine.generate(call.messages, **call.options))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` for an event loop, which it never blocks."""
        call = await self._acall(messages, kwargs)
        return call.response(await self.engine.agenerate(call.messages, **call.options))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The reply as it comes: `delta` is what is new, the message holds all so far; tool calls come last, whole."""
        return self._pieces(self._call(messages, kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` for an event loop."""
        return self._apieces(await self._acall(messages, kwargs))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The reply to a prompt, which the model sees as a user's message."""
        call = self._call(self._asking(prompt, formatted), _alone(kwargs))
        return as_completion(call.response(self.engine.generate(call.messages, **call.options)))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete` for an event loop."""
        call = await self._acall(self._asking(prompt, formatted), _alone(kwargs))
        return as_completion(call.response(await self.engine.agenerate(call.messages, **call.options)))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """The reply to a prompt as it comes."""
        pieces = self._pieces(self._call(self._asking(prompt, formatted), _alone(kwargs)))
        return (as_completion(piece) for piece in pieces)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete` for an event loop."""
        pieces = self._apieces(await self._acall(self._asking(prompt, formatted), _alone(kwargs)))
        return (as_completion(piece) async for piece in pieces)

    # --- tools

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        asked = ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
        messages = [*(chat_history or []), *([] if asked is None else [asked])]
        if not tools:
            return {"messages": messages, **kwargs}
        described = [described_tool(tool) for tool in tools]
        names = [(one["function"]["name"], tool.metadata.name) for one, tool in zip(described, tools, strict=True)]
        kwargs |= {"tool_names": renamed} if (renamed := {new: old for new, old in names if new != old}) else {}
        return {
            "messages": messages,
            "tools": described,
            "tool_choice": tool_choice or ("required" if tool_required else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The tool calls of a reply; a piece of a stream has none before they are whole.

        Raises:
            ValueError: there is none, and there should be.
        """
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            said = response.message.content or ""
            raise ValueError(
                f"the reply holds no tool call ({said[:80]!r}), expected at least one: force it by tool_required=True "
                "or tool_choice, and if it was cut off, raise max_tokens"
            )
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "",
                tool_name=call.tool_name,
                tool_kwargs=call.tool_kwargs if isinstance(call.tool_kwargs, dict) else {},
            )
            for call in calls
        ]

    # --- inside

    @property
    def _model_name(self) -> str:
        return self.model or self.engine.model_name

    def _asking(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        text = prompt if formatted or self.completion_to_prompt is None else self.completion_to_prompt(prompt)
        return [ChatMessage(role=MessageRole.USER, content=text)]

    def _call(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> EngineCall:
        return self._parsed(messages, kwargs, self._reading(messages, kwargs) or Reading(None))

    async def _acall(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> EngineCall:
        reading = self._reading(messages, kwargs) or await reading_of_step(engine_id=self.engine_id)
        return self._parsed(messages, kwargs, reading or Reading(None))

    def _reading(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Reading | None:
        mode = kwargs.get("memory") or self.memory
        check_memory(mode)
        if mode == "off":
            return Reading(None)
        if kwargs.get("session_id") is not None:
            session = session_name(kwargs["session_id"])
            return reading_of_session(session, engine_id=self.engine_id, thread=kwargs.get("thread"))
        return reading_of(messages, engine_id=self.engine_id, bound=self.session_id)

    def _parsed(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any], reading: Reading) -> EngineCall:
        own = {name: value for name in (*SAMPLING, "recent_messages") if (value := getattr(self, name)) is not None}
        return EngineCall.parse(messages, reading=reading, keywords=kwargs, settings=own, model=self._model_name)

    def _pieces(self, call: EngineCall) -> Generator[ChatResponse, None, None]:
        text = ""
        items = cast("Generator[str | Turn]", self.engine.stream(call.messages, **call.options))
        with closing(items):
            for item in items:
                text += item if isinstance(item, str) else ""
                yield call.piece(text, item)

    async def _apieces(self, call: EngineCall) -> AsyncGenerator[ChatResponse, None]:
        text = ""
        items = cast("AsyncGenerator[str | Turn]", self.engine.astream(call.messages, **call.options))
        async with aclosing(items):  # a reader who leaves early is known to have left
            async for item in items:
                text += item if isinstance(item, str) else ""
                yield call.piece(text, item)


def _alone(kwargs: dict[str, Any]) -> dict[str, Any]:
    """A prompt says what it needs of the conversation itself: no recent messages in front, unless asked for."""
    return {"recent_messages": STATE_ALONE, **kwargs}
