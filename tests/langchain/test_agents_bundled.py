"""The bundled model in agents: forks, tools and recall, as a user has them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from deltamem_agents import DeltaMemEngine, bundled_is_cached
from langchain_deltamem import ChatDeltaMem, DeltaMemMiddleware
from tests.langchain.lines import Line, Talk, near, seeded_agent
from tests.langchain.steering import Calls
from tests.langchain.test_forks import ACTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model has not been fetched"),
]
RECENT = 2


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundled") / "memory.db"


@pytest.fixture(scope="module")
def engine(store: Path) -> Iterator[DeltaMemEngine]:
    with DeltaMemEngine.bundled(store=store, recent_messages=RECENT) as engine:
        yield engine


@pytest.mark.parametrize("name", ACTS)
def test_forks_come_to_what_the_visible_messages_come_to(name: str, engine: DeltaMemEngine) -> None:
    """Two threads of one user; the session's state is that of a fresh session which is told the visible line."""
    agent = seeded_agent(ChatDeltaMem(engine=engine, max_new_tokens=8))
    talks = {thread: Talk(agent, thread, session=name) for thread in ("a", "b")}
    line = Line()
    texts = iter(["My dog is called Rex.", "I live in Oslo.", "I like tea.", "Good morning!", "And my cat is Tom."])
    for thread, text in zip("abaaa", texts, strict=True):
        talks[thread].say(text)
        line.follow(thread, talks[thread].visible)
    ACTS[name](talks["a"], 3)
    line.follow("a", talks["a"].visible)
    assert not line.appended
    fresh = engine.session(f"fresh {name}")
    for thread, turn in line.turns:
        engine.absorb(turn, session=fresh.name, thread=thread)
    assert near(engine.state(name), fresh.state)


def test_an_agent_with_tools_keeps_its_loop_and_its_facts(engine: DeltaMemEngine) -> None:
    """Ten turns, a call in each, four recent messages; what was told first is in the memory alone at the end."""

    def weather(city: Literal["Oslo", "Rome"]) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    middleware = [Calls("weather"), DeltaMemMiddleware(recent_messages=4)]
    model = ChatDeltaMem(engine=engine, max_new_tokens=24, session_id="loop")
    agent = create_agent(model, [weather], middleware=middleware, checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t1"}}
    largest = []
    messages: list[AnyMessage] = []
    for text in ("My dog is called Rex.", *["What is the weather like?"] * 8, "What is my dog's name?"):
        before = len(messages)
        messages = agent.invoke({"messages": [HumanMessage(text)]}, config)["messages"]
        replies = [m for m in messages[before:] if isinstance(m, AIMessage)]
        largest.append(max((reply.usage_metadata or {})["input_tokens"] for reply in replies))
    kinds = [type(message) for message in messages]
    assert kinds == [HumanMessage, AIMessage, ToolMessage, AIMessage] * 10
    assert max(largest[5:]) <= 1.1 * max(largest[:5])
    print(f"prompt tokens a turn: {largest}; at the end: {messages[-1].text!r}")
