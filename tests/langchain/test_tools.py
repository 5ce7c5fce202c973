"""Tools: what is bound, what is called, and that calls and answers survive the way to the engine and back."""

import json
from functools import reduce
from operator import add
from typing import Any, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from pydantic import BaseModel, Field

from deltamem_agents import ConfigError, DeltaMemEngine, Message, ToolCall, Turn, Usage
from langchain_deltamem import ChatDeltaMem
from langchain_deltamem.messages import last_chunk, reply_message, to_engine
from tests.langchain.conftest import Said

LIMIT = 160


@tool
def weather(city: str, days: int = 1) -> str:
    """The weather in a city."""
    return f"{city}: sunny for {days} days"


class Lamp(BaseModel):
    """Switches a lamp."""

    on: bool
    brightness: int = Field(ge=0, le=9)


class Greeting(TypedDict):
    """Greets somebody."""

    word: str


def double(number: int) -> int:
    """Doubles a number."""
    return 2 * number


ANTHROPIC = {"name": "colour", "description": "Picks one.", "input_schema": {"type": "object", "properties": {}}}
OPENAI = {"type": "function", "function": {"name": "noop", "description": "Nothing.", "parameters": {"type": "object"}}}
OTHER = {"title": "other", "description": "Something else.", "type": "object", "properties": {}}
TOOLS: list[Any] = [weather, Lamp, Greeting, double, ANTHROPIC, OPENAI]
NAMES = ["weather", "Lamp", "Greeting", "double", "colour", "noop"]


def calls_of(message: Any) -> list[Any]:
    assert isinstance(message, AIMessage)
    return message.tool_calls


class TestBinding:
    @pytest.mark.parametrize(("given", "name"), zip(TOOLS, NAMES, strict=True), ids=NAMES)
    def test_every_kind_of_tool(self, model: ChatDeltaMem, given: Any, name: str) -> None:
        reply = model.bind_tools([given], tool_choice="any").invoke("hello", max_new_tokens=LIMIT)
        assert [call["name"] for call in calls_of(reply)] == [name]
        if isinstance(given, BaseTool):
            assert isinstance(given.invoke(calls_of(reply)[0]), ToolMessage)

    @pytest.mark.parametrize("choice", ["any", "required", True])
    def test_any_tool(self, model: ChatDeltaMem, choice: Any) -> None:
        reply = model.bind_tools(TOOLS, tool_choice=choice).invoke("hello", max_new_tokens=LIMIT)
        assert calls_of(reply)[0]["name"] in NAMES

    @pytest.mark.parametrize("choice", ["Lamp", {"type": "function", "function": {"name": "Lamp"}}, {"name": "Lamp"}])
    def test_one_tool(self, model: ChatDeltaMem, choice: Any) -> None:
        reply = model.bind_tools(TOOLS, tool_choice=choice).invoke("hello", max_new_tokens=LIMIT)
        assert [call["name"] for call in calls_of(reply)] == ["Lamp"]
        Lamp.model_validate(calls_of(reply)[0]["args"])

    @pytest.mark.parametrize("choice", ["none", False])
    def test_no_tool(self, model: ChatDeltaMem, choice: Any) -> None:
        """They are not even shown."""
        reply = model.bind_tools(TOOLS, tool_choice=choice).invoke("hello")
        assert reply.content == model.invoke("hello").content
        assert reply.usage_metadata == model.invoke("hello").usage_metadata

    @pytest.mark.parametrize("choice", [None, "auto"])
    def test_the_model_decides(self, model: ChatDeltaMem, choice: Any) -> None:
        """This one talks on; the tools are shown to it."""
        reply = model.bind_tools(TOOLS, tool_choice=choice).invoke("hello")
        assert reply.content
        assert calls_of(reply) == []
        shown, plain = reply.usage_metadata, model.invoke("hello").usage_metadata
        assert shown is not None
        assert plain is not None
        assert shown["input_tokens"] > plain["input_tokens"] + len("Switches a lamp.")

    def test_no_tools_at_all(self, model: ChatDeltaMem) -> None:
        """An agent without tools binds an empty list."""
        assert model.bind_tools([]).invoke("hello").content == model.invoke("hello").content

    def test_strict_requires_all(self, model: ChatDeltaMem) -> None:
        loose, strict = (model.bind_tools([weather], strict=strict).kwargs["tools"][0] for strict in (None, True))  # type: ignore[attr-defined]
        assert loose["function"]["parameters"]["required"] == ["city"]
        assert strict["function"]["parameters"]["required"] == ["city", "days"]

    @pytest.mark.parametrize(
        ("tools", "choice", "found"),
        [
            ([weather], "wether", r"tool_choice is 'wether', expected .* \(weather\)"),
            ([], "any", "tool_choice is 'any'"),
            ([weather, {**OTHER, "title": "weather"}], None, "two tools are called 'weather'"),
            ([{"type": "web_search"}], None, "tool 0 is not valid"),
            ([weather, 7], None, "tool 1 cannot be described"),
            ([{"type": "object", "properties": {}}], None, "tool 0 cannot be described"),
            (
                [{"title": "f", "type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}],
                None,
                "no arguments can be generated",
            ),
        ],
    )
    def test_what_cannot_be_bound(self, model: ChatDeltaMem, tools: Any, choice: Any, found: str) -> None:
        with pytest.raises(ConfigError, match=found):
            model.bind_tools(tools, tool_choice=choice)

    def test_the_session_survives_binding(self, model: ChatDeltaMem, said: Said) -> None:
        model.with_session("alice").bind_tools([weather]).invoke("hello")
        assert len(said("alice")) == 2


class TestReplies:
    @pytest.fixture
    def caller(self, model: ChatDeltaMem) -> BaseChatModel:
        return model.bind_tools([Lamp], tool_choice="any").bind(max_new_tokens=LIMIT)  # type: ignore[return-value]

    async def test_every_way_calls_the_same(self, caller: BaseChatModel) -> None:
        replies: list[Any] = [
            caller.invoke("hello"),
            await caller.ainvoke("hello"),
            reduce(add, caller.stream("hello")),
            reduce(add, [chunk async for chunk in caller.astream("hello")]),
            *caller.batch(["hello"]),
        ]
        first = replies[0]
        for reply in replies:
            assert [(c["name"], c["args"]) for c in calls_of(reply)] == [
                (c["name"], c["args"]) for c in calls_of(first)
            ]
            assert reply.response_metadata["finish_reason"] == "tool_calls"
            assert reply.content == ""
        assert len({call["id"] for reply in replies for call in calls_of(reply)}) == len(replies)

    def test_one_chunk_holds_the_call(self, caller: BaseChatModel) -> None:
        chunks: list[Any] = list(caller.stream("hello"))
        assert [bool(chunk.tool_call_chunks) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert chunks[-1].chunk_position == "last"
        assert json.loads(chunks[-1].tool_call_chunks[0]["args"]) == chunks[-1].tool_calls[0]["args"]

    def test_v1_blocks(self, model: ChatDeltaMem) -> None:
        v1 = model.model_copy(update={"output_version": "v1"}).bind_tools([Lamp], tool_choice="any")
        invoked = v1.invoke("hello", max_new_tokens=LIMIT)
        streamed: Any = reduce(add, v1.stream("hello", max_new_tokens=LIMIT))
        for reply in (invoked, streamed):
            assert [block["type"] for block in reply.content] == ["tool_call"]
            assert reply.content[0]["args"] == calls_of(reply)[0]["args"]

    @pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
    def test_v3_events(self, caller: BaseChatModel) -> None:
        output = caller.stream_events("hello", version="v3").output
        assert [block["type"] for block in output.content_blocks] == ["tool_call"]
        Lamp.model_validate(calls_of(output)[0]["args"])

    def test_a_call_without_room_is_invalid(self, caller: BaseChatModel) -> None:
        invoked = caller.invoke("hello", max_new_tokens=12)
        streamed: Any = reduce(add, caller.stream("hello", max_new_tokens=12))
        for reply in (invoked, streamed):
            assert calls_of(reply) == []
            assert [broken["args"] for broken in reply.invalid_tool_calls] == ["<tool_call>\n"]
            assert reply.invalid_tool_calls[0]["id"]
            assert reply.response_metadata["finish_reason"] == "length"
        error = invoked.invalid_tool_calls[0]["error"]
        assert error is not None
        assert "12 tokens is no tool call (finish reason 'length')" in error

    def test_a_cut_off_json_call_is_not_mended(self) -> None:
        """LangChain reads `{"name": "La` as arguments, which would be a call of nothing."""
        turn = turn_of(Message(role="assistant", content='{"name": "La'), finish_reason="length")
        assert calls_of(last_chunk(turn, {}, forced=True)) == []


NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abé\"{", max_size=3), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text("abé", min_size=1, max_size=3), JSON, max_size=3)
IDS = st.uuids().map(str)
CALLS = st.lists(st.builds(ToolCall, name=st.sampled_from(NAMES), arguments=ARGUMENTS, id=IDS), max_size=3)


def turn_of(reply: Message, finish_reason: Any = "stop") -> Turn:
    return Turn(reply, Usage(5, 3, 0), finish_reason, None, None)


class TestRoundTrip:
    @given(content=st.sampled_from(["", "Let me see."]), calls=CALLS)
    def test_a_reply_comes_back_as_it_was(self, content: str, calls: list[ToolCall]) -> None:
        """To the same digest: the engine must know its own replies, however they were called for."""
        reply = Message(role="assistant", content=content, tool_calls=tuple(calls))
        text = AIMessageChunk(content=content)
        streamed = text + last_chunk(turn_of(reply), {}, forced=False)
        for message in (reply_message(turn_of(reply), {}, forced=False), streamed):
            for written in (message, message.model_copy(update={"content": message.content_blocks})):
                (again,) = to_engine([type(written).model_validate_json(written.model_dump_json())])
                assert again.digest() == reply.digest()
                assert [call.id for call in again.tool_calls] == [call.id for call in calls]

    def test_answers_know_their_call(self) -> None:
        messages = [
            HumanMessage("hello"),
            AIMessage("", tool_calls=[{"name": "weather", "args": {"city": "Rome"}, "id": "1"}]),
            ToolMessage([{"type": "text", "text": "sun"}], tool_call_id="1", status="error"),
        ]
        answer = to_engine(messages, whole=True)[2]
        assert (answer.role, answer.content, answer.tool_call_id, answer.name) == ("tool", "sun", "1", "weather")

    def test_a_call_without_id_gets_one(self) -> None:
        (message,) = to_engine([AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": None}])])
        assert message.tool_calls[0].id

    def test_broken_calls_of_other_models_are_text(self) -> None:
        broken = {"name": "f", "args": '{"a": ', "id": "1", "error": "no JSON", "type": "invalid_tool_call"}
        messages = [
            HumanMessage("hello"),
            AIMessage("Hm.", invalid_tool_calls=[broken]),  # type: ignore[list-item]
            ToolMessage("Arguments are no JSON.", tool_call_id="1"),
        ]
        assert [message.content for message in to_engine(messages, whole=True)][1] == 'Hm.\n{"a": '


class TestAgents:
    def test_a_loop_in_a_session_is_said_once(self, engine: DeltaMemEngine, said: Said) -> None:
        """The whole history comes back with each call; calls and answers are known by handle and digest."""
        model = ChatDeltaMem(engine=engine, max_new_tokens=LIMIT, session_id="alice")
        history: list[Any] = [HumanMessage("Weather?")]
        history.append(model.bind_tools([Lamp], tool_choice="any").invoke(history))
        history.append(ToolMessage("done", tool_call_id=calls_of(history[-1])[0]["id"]))
        history.append(model.bind_tools([Lamp], tool_choice="none").invoke(history, max_new_tokens=4))
        history.append(HumanMessage("Thanks."))
        model.bind_tools([Lamp]).invoke(history, max_new_tokens=4)
        roles = ["user", "assistant", "tool", "assistant", "user", "assistant"]
        assert [role for role, _ in said("alice")] == roles

    def test_only_the_answer_may_come_back(self, engine: DeltaMemEngine, said: Said) -> None:
        """The call is in the session."""
        model = ChatDeltaMem(engine=engine, max_new_tokens=LIMIT, session_id="alice")
        call = calls_of(model.bind_tools([Lamp], tool_choice="any").invoke("Light!"))[0]
        model.invoke([ToolMessage("on", tool_call_id=call["id"])], max_new_tokens=4)
        assert [role for role, _ in said("alice")] == ["user", "assistant", "tool", "assistant"]

    def test_provider_strategy(self, model: ChatDeltaMem) -> None:
        """The profile says that structured output is native, so an agent asks for it by `response_format`."""
        agent = create_agent(model.model_copy(update={"max_new_tokens": LIMIT}), [weather], response_format=Lamp)
        state = agent.invoke({"messages": [("user", "hello")]})
        assert isinstance(state["structured_response"], Lamp)
        assert calls_of(state["messages"][-1]) == []

    def test_without_tools(self, model: ChatDeltaMem) -> None:
        agent = create_agent(model.model_copy(update={"max_new_tokens": LIMIT}), response_format=Lamp)
        assert isinstance(agent.invoke({"messages": [("user", "hello")]})["structured_response"], Lamp)
