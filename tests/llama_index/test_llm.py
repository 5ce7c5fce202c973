"""`DeltaMemLLM` as a LlamaIndex LLM: its eight calls, tools, structured output, settings, and what it leaves behind."""

import asyncio
import copy
import inspect
import json
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field, create_model

from deltamem_agents import ConfigError, DeltaMemEngine, GenerationError
from llama_index_deltamem import DeltaMemLLM, DeltaMemory
from tests.llama_index.lines import user
from tests.llama_index.runners import look_up, tell_time

HELLO = [ChatMessage(role="system", content="Be kind."), user("hello")]
TOOLS = [FunctionTool.from_defaults(look_up), FunctionTool.from_defaults(tell_time)]
Pieces = list[ChatResponse] | list[CompletionResponse]
Call = Callable[..., Awaitable[Any]]


class Pet(BaseModel):
    """A pet."""

    kind: Literal["dog", "cat"]
    name: str = Field(max_length=6)


@pytest.fixture(params=["chat", "achat", "stream_chat", "astream_chat"])
def chat(request: pytest.FixtureRequest) -> Call:
    """Each way to chat; gives all pieces."""
    return _all_pieces(request.param)


@pytest.fixture(params=["complete", "acomplete", "stream_complete", "astream_complete"])
def complete(request: pytest.FixtureRequest) -> Call:
    """Each way to complete; gives all pieces."""
    return _all_pieces(request.param)


def _all_pieces(name: str) -> Call:
    async def run(llm: DeltaMemLLM, asked: Any, **kwargs: Any) -> list[Any]:
        answer = getattr(llm, name)(asked, **kwargs)
        if inspect.isawaitable(answer):
            answer = await answer
        if inspect.isasyncgen(answer):
            return [piece async for piece in answer]
        return list(answer) if inspect.isgenerator(answer) else [answer]

    return run


class TestCalls:
    async def test_all_ways_say_the_same(self, llm: DeltaMemLLM, chat: Call) -> None:
        expected = llm.engine.generate(
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}], max_new_tokens=6
        )
        pieces = await chat(llm, HELLO)
        assert pieces[-1].message.content == expected.reply.content
        assert pieces[-1].raw["usage"]["completion_tokens"] == expected.usage.completion_tokens == 6
        assert pieces[-1].additional_kwargs["prompt_tokens"] == expected.usage.prompt_tokens
        assert json.loads(json.dumps(pieces[-1].raw)) == pieces[-1].raw

    async def test_completions(self, llm: DeltaMemLLM, complete: Call) -> None:
        pieces = await complete(llm, "hello")
        assert pieces[-1].text == llm.chat([user("hello")]).message.content

    def test_pieces_add_up(self, llm: DeltaMemLLM) -> None:
        pieces = list(llm.stream_chat(HELLO))
        assert len(pieces) > 3
        text = ""
        for piece in pieces:
            text += piece.delta or ""
            assert piece.message.content == text
        completed = list(llm.stream_complete("hello"))
        assert "".join(piece.delta or "" for piece in completed) == completed[-1].text

    @pytest.mark.parametrize("name", ["max_tokens", "max_new_tokens"])
    async def test_each_call_may_say_how_long(self, llm: DeltaMemLLM, chat: Call, name: str) -> None:
        pieces = await chat(llm, HELLO, **{name: 3})
        assert pieces[-1].raw["usage"]["completion_tokens"] == 3
        assert pieces[-1].raw["finish_reason"] == "length"

    async def test_sampling(self, llm: DeltaMemLLM, chat: Call) -> None:
        async def said(**kwargs: Any) -> str:
            return str((await chat(llm, HELLO, **kwargs))[-1].message.content)

        assert await said(temperature=2.0, seed=1) == await said(temperature=2.0, seed=1)
        assert len({await said(temperature=2.0, seed=seed) for seed in range(5)}) > 1

    async def test_stop(self, llm: DeltaMemLLM, chat: Call) -> None:
        whole = str(llm.chat(HELLO).message.content)
        pieces = await chat(llm, HELLO, stop=[whole[2]])
        assert pieces[-1].message.content == whole[: whole.index(whole[2])]

    async def test_the_loop_is_never_blocked(self, llm: DeltaMemLLM) -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        await llm.achat(HELLO, max_tokens=60)
        ticking.cancel()
        assert ticks > 5

    async def test_unknown_options(self, llm: DeltaMemLLM, chat: Call) -> None:
        with pytest.raises(GenerationError, match=r"temprature.*known are max_new_tokens, temperature"):
            await chat(llm, HELLO, temprature=1)

    def test_predict(self, llm: DeltaMemLLM) -> None:
        prompt = PromptTemplate("say {word}")
        assert llm.predict(prompt, word="hello") == llm.complete("say hello").text
        assert "".join(llm.stream(prompt, word="hello")) == llm.complete("say hello").text

    def test_tokens_are_counted(self, llm: DeltaMemLLM) -> None:
        """By LlamaIndex's own handler, from what the engine fed and made."""
        counter = TokenCountingHandler(tokenizer=list)
        llm.callback_manager = CallbackManager([counter])
        response = llm.chat(HELLO)
        assert counter.prompt_llm_token_count == response.additional_kwargs["prompt_tokens"]
        assert counter.completion_llm_token_count == 6


class TestNothingIsKept:
    async def test_by_any_call(
        self, llm: DeltaMemLLM, alice: DeltaMemory, chat: Call, complete: Call, engine: DeltaMemEngine
    ) -> None:
        alice.put(user("My dog is called Rex."))
        head = engine.session("alice").info.head
        await chat(llm, alice.get())
        await chat(llm, [*alice.get(), user("more")])
        await chat(llm, HELLO, session_id="alice")
        await complete(llm, "hello", session_id="alice")
        assert engine.session("alice").info.head == head
        assert len(engine.sessions()) == 1

    def test_a_session_that_has_not_begun(self, llm: DeltaMemLLM, engine: DeltaMemEngine) -> None:
        assert llm.chat(HELLO, session_id="new").message == llm.chat(HELLO, session_id="newer").message
        assert engine.sessions() == []

    def test_keeping_is_refused(self, llm: DeltaMemLLM) -> None:
        with pytest.raises(ConfigError, match=r"'read_write'.*DeltaMemory.put does"):
            llm.chat(HELLO, session_id="alice", memory="read_write")


class TestTools:
    async def test_a_forced_call(self, llm: DeltaMemLLM) -> None:
        response = llm.chat_with_tools(TOOLS, "noon?", tool_required=True, max_tokens=120)
        [call] = llm.get_tool_calls_from_response(response)
        assert call.tool_name in ("look_up", "tell_time")
        assert call.tool_kwargs in ({"city": "Oslo"}, {"city": "Rome"}, {"zone": "UTC"}, {"zone": "CET"})
        named = await llm.achat_with_tools(TOOLS, "noon?", tool_choice="tell_time", max_tokens=120)
        assert llm.get_tool_calls_from_response(named)[0].tool_name == "tell_time"

    async def test_calls_come_whole(self, llm: DeltaMemLLM) -> None:
        stream = await llm.astream_chat_with_tools(TOOLS, "noon?", tool_choice="tell_time", max_tokens=120)
        pieces = [piece async for piece in stream]
        found = [llm.get_tool_calls_from_response(piece, error_on_no_tool_call=False) for piece in pieces]
        assert [len(calls) for calls in found] == [0] * (len(pieces) - 1) + [1]
        synchronous = list(llm.stream_chat_with_tools(TOOLS, "noon?", tool_choice="tell_time", max_tokens=120))
        assert llm.get_tool_calls_from_response(synchronous[-1])[0].tool_kwargs == found[-1][0].tool_kwargs

    def test_the_answer_goes_back(self, llm: DeltaMemLLM) -> None:
        call = llm.chat_with_tools(TOOLS, "noon?", tool_choice="tell_time", max_tokens=120).message
        id = next(block.tool_call_id for block in call.blocks if isinstance(block, ToolCallBlock))
        answer = ChatMessage(role="tool", content="noon", additional_kwargs={"tool_call_id": id})
        assert llm.chat_with_tools(TOOLS, chat_history=[user("noon?"), call, answer]).message.content

    def test_predict_and_call(self, llm: DeltaMemLLM) -> None:
        response = llm.predict_and_call(TOOLS, "noon?", tool_choice="tell_time", max_tokens=120)
        assert response.response in (tell_time("UTC"), tell_time("CET"))

    def test_no_call_where_one_is_needed(self, llm: DeltaMemLLM) -> None:
        with pytest.raises(ValueError, match=r"no tool call.*tool_required=True"):
            llm.get_tool_calls_from_response(llm.chat(HELLO))

    def test_no_tools(self, llm: DeltaMemLLM) -> None:
        assert llm.chat_with_tools([], "hello").message == llm.chat([user("hello")]).message


class TestStructured:
    PROMPT = PromptTemplate("A pet called {name}.")

    async def test_predict(self, llm: DeltaMemLLM) -> None:
        """The reply is a forced call: valid by the class, whatever the model says."""
        kwargs = {"max_tokens": 120}
        first = llm.structured_predict(Pet, self.PROMPT, llm_kwargs=kwargs, name="Rex")
        assert isinstance(first, Pet)
        assert first == await llm.astructured_predict(Pet, self.PROMPT, llm_kwargs=dict(kwargs), name="Rex")

    async def test_stream(self, llm: DeltaMemLLM) -> None:
        """The object grows, and is whole at the end."""
        kwargs = {"max_tokens": 120}
        stream = llm.stream_structured_predict(Pet, self.PROMPT, llm_kwargs=kwargs, name="Rex")
        objects = list(stream)
        assert isinstance(objects[-1], Pet)
        assert len({str(found) for found in objects}) > 2
        asynchronous = await llm.astream_structured_predict(Pet, self.PROMPT, llm_kwargs=kwargs, name="Rex")
        assert [found async for found in asynchronous][-1] == objects[-1]

    async def test_as_structured_llm(self, llm: DeltaMemLLM) -> None:
        structured = llm.model_copy(update={"max_new_tokens": 120}).as_structured_llm(Pet)
        assert isinstance(structured.chat(HELLO).raw, Pet)
        assert isinstance((await structured.achat(HELLO)).raw, Pet)
        assert isinstance(list(structured.stream_chat(HELLO))[-1].raw, Pet)


class TestSettings:
    def test_metadata(self, llm: DeltaMemLLM, engine: DeltaMemEngine) -> None:
        found = llm.metadata
        assert (found.context_window, found.num_output) == (engine.context, 6)
        assert found.is_chat_model
        assert found.is_function_calling_model
        assert "tokenizer" not in llm.to_payload()

    def test_max_tokens(self, engine: DeltaMemEngine) -> None:
        assert DeltaMemLLM(engine=engine, max_tokens=9).metadata.num_output == 9

    @pytest.mark.parametrize("way", ["pickle", "deepcopy", "to_dict"])
    def test_copies_share_the_engine(self, llm: DeltaMemLLM, way: str) -> None:
        ways: dict[str, Callable[[], Any]] = {
            "pickle": lambda: pickle.loads(pickle.dumps(llm)),
            "deepcopy": lambda: copy.deepcopy(llm),
            "to_dict": lambda: DeltaMemLLM.from_dict(json.loads(json.dumps(llm.to_dict()))),
        }
        other = ways[way]()
        assert other.engine is llm.engine
        assert other.chat(HELLO).message == llm.chat(HELLO).message

    def test_by_name_of_model_and_adapter(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        """Loaded once for the same arguments; a pickle loads it again where it must."""
        model, adapter = map(str, folders)
        place = {"model": model, "adapter": adapter, "store": tmp_path / "memory.db", "engine_id": str(tmp_path)}
        llm = DeltaMemLLM(**place, max_new_tokens=4)
        with llm.engine:
            assert DeltaMemLLM(**place).engine is llm.engine
            assert llm.metadata.model_name == model
            copied = pickle.loads(pickle.dumps(llm))
            assert copied.engine is llm.engine
        again = pickle.loads(pickle.dumps(llm))
        with again.engine:
            assert again.engine is not copied
            assert again.chat(HELLO).message.content


class Dossier(BaseModel):
    """A person and whom they know."""

    name: str = Field(max_length=4)
    friends: list["Dossier"] = Field(max_length=2)


T = TypeVar("T")


class Gen(BaseModel, Generic[T]):
    """Holds something."""

    value: T


@pytest.mark.parametrize("made", [Dossier, Gen[bool], create_model("Досье", value=(bool, ...))], ids=str)
async def test_classes_that_a_tool_cannot_be_made_of_as_they_are(engine: DeltaMemEngine, made: Any) -> None:
    """One refers to itself, another has a name that is no tool's."""
    for seed in range(2):
        llm = DeltaMemLLM(engine=engine, max_new_tokens=200, temperature=1.0, seed=seed)
        prompt = PromptTemplate("Make one.")
        assert isinstance(llm.structured_predict(made, prompt), made)
        assert isinstance(await llm.astructured_predict(made, prompt), made)
    assert isinstance(list(llm.stream_structured_predict(made, prompt))[-1], made)


def test_options_of_transformers(folders: tuple[Path, Path]) -> None:
    model, adapter = map(str, folders)
    llm = DeltaMemLLM(
        model=model,
        adapter=adapter,
        store=":memory:",
        engine_id="eager",
        model_kwargs={"attn_implementation": "eager", "token": "secret"},
    )
    with llm.engine as engine:
        assert engine.model.backbone.config._attn_implementation == "eager"
    assert "secret" not in f"{llm!r}{llm.to_json()}"
