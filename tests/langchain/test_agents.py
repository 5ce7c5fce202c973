"""Agents over many turns and many users: tool loops under small windows, and fifty conversations at once."""

import asyncio
from hashlib import sha256
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from deltamem_agents import DeltaMemEngine, MemoryState
from langchain_deltamem import ChatDeltaMem, DeltaMemMiddleware
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for
from tests.engine.reference import NaiveSession
from tests.langchain.lines import near, plain
from tests.langchain.steering import Calls

TURNS = 12
USERS = 50


def weather(city: Literal["Oslo", "Rome"]) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def clock(zone: Literal["UTC", "CET"]) -> str:
    """The time in a zone."""
    return f"noon, {zone}"


class TestToolLoop:
    def talk(self, model: ChatDeltaMem, session: str, recent: int) -> tuple[list[AnyMessage], list[int]]:
        """So many turns with two tool calls each: all messages, and the largest prompt of each turn."""
        middleware = [Calls("weather", "clock"), DeltaMemMiddleware(recent_messages=recent)]
        agent = create_agent(model, [weather, clock], middleware=middleware, checkpointer=InMemorySaver())
        messages: list[AnyMessage] = []
        largest = []
        for number in range(10, 10 + TURNS):
            config: Any = {"configurable": {"thread_id": "t1", "session_id": session}}
            before = len(messages)
            messages = agent.invoke({"messages": [HumanMessage(f"question {number}")]}, config)["messages"]
            used = [m.usage_metadata or {} for m in messages[before:] if isinstance(m, AIMessage)]
            largest.append(max(usage["input_tokens"] for usage in used))
        return messages, largest

    def test_it_never_breaks_and_its_prompts_stay_flat(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        messages, largest = self.talk(model, "alice", recent=4)
        kinds = [type(message) for message in messages]
        assert kinds == [HumanMessage, AIMessage, ToolMessage, AIMessage, ToolMessage, AIMessage] * TURNS
        calls = [call for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]
        assert [call["name"] for call in calls] == ["weather", "clock"] * TURNS
        answers = [m.tool_call_id for m in messages if isinstance(m, ToolMessage)]
        assert answers == [call["id"] for call in calls]
        roles = {HumanMessage: "user", AIMessage: "assistant", ToolMessage: "tool"}
        line = engine.store.line(engine.session("alice").info.head or "")
        assert [entry.role for turn in line for entry in turn.entries] == [roles[kind] for kind in kinds]
        assert max(largest[TURNS // 2 :]) <= max(largest[: TURNS // 2])
        _, whole = self.talk(model, "bob", recent=10 * TURNS)
        whole = whole[: TURNS // 2]  # later the context is full
        assert whole == sorted(set(whole))
        assert whole[-1] > 1.5 * max(largest)


async def test_fifty_users_at_once_have_each_their_own_memory() -> None:
    """Two turns each, all under way together: each state is that of the same turns alone, and nobody else's."""
    with DeltaMemEngine(model_for(("user", "assistant", "tool")), byte_tokenizer(), store=":memory:") as engine:
        model = ChatDeltaMem(engine=engine, max_new_tokens=4)
        agent = create_agent(model, middleware=[DeltaMemMiddleware(session="user")], checkpointer=InMemorySaver())

        async def talk(name: str) -> list[AnyMessage]:
            config: Any = {"configurable": {"thread_id": f"thread of {name}"}}
            for text in (f"I am {name}.", f"My secret is {sha256(name.encode()).hexdigest()[:16]}."):
                given: Any = {"messages": [HumanMessage(text)]}
                state = await agent.ainvoke(given, config, context={"user": name})  # type: ignore[arg-type]
            return list(state["messages"])

        names = [f"user{number}" for number in range(USERS)]
        talks = await asyncio.wait_for(asyncio.gather(*map(talk, names)), timeout=300)
        states = [engine.state(name) for name in names]
        for name, state, messages in zip(names, states, talks, strict=True):
            line = engine.store.line(engine.session(name).info.head or "")
            said = [plain(message).digest() for message in messages]
            assert [entry.digest for turn in line for entry in turn.entries] == said
            expected = alone(engine, messages)
            assert [near(other, expected) for other in states].count(True) == 1
            assert near(state, expected)


def alone(engine: DeltaMemEngine, messages: list[AnyMessage]) -> MemoryState:
    naive = NaiveSession(engine.model, engine.recent_messages)
    for asked, reply in zip(messages[::2], messages[1::2], strict=True):
        naive.turn([plain(asked)], reply=reply.text)
    return naive.state


@pytest.mark.parametrize("streaming", [False, True])
async def test_one_user_in_many_threads_at_once(model: ChatDeltaMem, engine: DeltaMemEngine, streaming: bool) -> None:
    """Everything said is in the one memory, once."""
    agent = create_agent(model.with_session("alice"), checkpointer=InMemorySaver())

    async def talk(thread: str) -> None:
        for number in range(2):
            given: Any = {"messages": [HumanMessage(f"{number} in {thread}")]}
            config: Any = {"configurable": {"thread_id": thread}}
            if streaming:
                assert [item async for item in agent.astream(given, config, stream_mode="messages")]
            else:
                await agent.ainvoke(given, config)

    threads = [f"t{number}" for number in range(8)]
    await asyncio.wait_for(asyncio.gather(*map(talk, threads)), timeout=300)
    line = engine.store.line(engine.session("alice").info.head or "")
    assert sorted(turn.thread for turn in line) == sorted(threads * 2)
    assert [[entry.role for entry in turn.entries] for turn in line] == [["user", "assistant"]] * 16
