"""An agent with two tools over thirty turns and a small window, on the bundled model, beside its full history.

Prints a table: `pytest -m slow -s tests/langchain/test_thirty_turns.py`.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from deltamem_agents import DeltaMemEngine, bundled_is_cached
from langchain_deltamem import ChatDeltaMem, DeltaMemMiddleware
from tests.langchain.steering import Steering

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model has not been fetched"),
    pytest.mark.timeout(3600),
]
TURNS, RECENT = 30, 4
FACTS = [
    ("My dog is called Rex.", "What is my dog's name?", "Rex"),
    ("My name is Nora.", "What is my name?", "Nora"),
    ("I live in Lisbon.", "Where do I live?", "Lisbon"),
    ("My favourite colour is green.", "What is my favourite colour?", "green"),
]
QUESTIONS: list[tuple[str, tuple[str, ...]]] = [
    ("What is the weather like?", ("weather",)),
    ("Good to know.", ()),
    ("What time is it?", ("clock",)),
    ("And weather and time?", ("weather", "clock")),
]
"""What is said between the first and the last turn, in turn, and the tools that it takes."""


def weather(city: Literal["Rome", "Paris"]) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def clock(zone: Literal["UTC", "CET"]) -> str:
    """The time in a zone."""
    return f"noon, {zone}"


class ToolTurns(Steering):
    """A 135M model calls no tool of its own accord: it is made to where a question takes one. The rest is its own."""

    def steered(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        asked = max(n for n, message in enumerate(request.messages) if isinstance(message, HumanMessage))
        wanted = dict(QUESTIONS).get(request.messages[asked].text, ())
        done = sum(isinstance(message, ToolMessage) for message in request.messages[asked:])
        if done >= len(wanted):
            return request
        settings = {**request.model_settings, "max_new_tokens": 48}
        return request.override(tool_choice=wanted[done], model_settings=settings)


@dataclass
class Talk:
    """One agent's thirty turns."""

    fact: int
    recent: int
    messages: list[AnyMessage] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    """The largest prompt of each turn, in tokens."""
    broken: list[int] = field(default_factory=list)
    """Turns whose tool loop broke."""

    @property
    def session(self) -> str:
        return f"fact {self.fact}, recent {self.recent}"

    @property
    def recalls(self) -> bool:
        return FACTS[self.fact][2].lower() in self.messages[-1].text.lower()

    async def run(self, model: ChatDeltaMem) -> None:
        middleware = [ToolTurns(), DeltaMemMiddleware(recent_messages=self.recent)]
        agent = create_agent(model, [weather, clock], middleware=middleware, checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": self.session, "session_id": self.session}}
        told, question, _ = FACTS[self.fact]
        between = [QUESTIONS[turn % len(QUESTIONS)] for turn in range(TURNS - 2)]
        for turn, (text, wanted) in enumerate([(told, ()), *between, (question, ())], start=1):
            before = len(self.messages)
            given: Any = {"messages": [HumanMessage(text)]}
            self.messages = (await agent.ainvoke(given, config))["messages"]
            new = self.messages[before + 1 :]
            replies = [message for message in new if isinstance(message, AIMessage)]
            self.prompts.append(max((reply.usage_metadata or {})["input_tokens"] for reply in replies))
            if not whole_loop(new, wanted):
                self.broken.append(turn)


async def answers(model: ChatDeltaMem, fact: int, session: str | None) -> bool:
    """Whether a question is answered under no prompt of tools, from a session's memory alone; None: by nothing."""
    _, question, value = FACTS[fact]
    memory = "off" if session is None else "read"
    reply = await model.ainvoke(question, session_id=session or "none", recent_messages=0, memory=memory)
    return value.lower() in reply.text.lower()


def whole_loop(new: list[AnyMessage], wanted: tuple[str, ...]) -> bool:
    """Whether each call is valid and answered right behind it, those wanted come first, and a text ends the turn."""
    *loop, last = new
    calls = [message.tool_calls for message in loop if isinstance(message, AIMessage)]
    answers = [message.tool_call_id for message in loop if isinstance(message, ToolMessage)]
    called = [call for some in calls for call in some]
    return (
        [call["id"] for call in called] == answers
        and [call["name"] for call in called[: len(wanted)]] == list(wanted)
        and not any(message.status == "error" for message in loop if isinstance(message, ToolMessage))
        and not any(message.invalid_tool_calls for message in new if isinstance(message, AIMessage))
        and isinstance(last, AIMessage)
        and not last.tool_calls
    )


@dataclass(frozen=True)
class Outcome:
    """All talks, and how many facts are known without thirty turns in between."""

    talks: list[Talk]
    full: Talk
    """The first fact, with the full history in the prompt."""
    fresh: int
    known: int
    plain: int
    """How many facts the memories answer after the thirty turns, without the prompt that describes the tools."""

    @property
    def kept(self) -> int:
        return sum(talk.recalls for talk in self.talks)

    def __str__(self) -> str:
        lines = [
            table(self.talks, self.full),
            f"fact of turn 1 answered at turn {TURNS}: {self.kept} of {len(self.talks)}",
            f"the same memories without the tools' prompt: {self.plain}",
            f"asked right after it was told, from the memory alone: {self.fresh}; by the frozen model: {self.known}",
            f"with the full history in the prompt, first fact: {self.full.recalls}",
            f"broken tool loops: {sum(len(t.broken) for t in self.talks)} of {len(self.talks) * TURNS} turns",
            *(f"  {FACTS[t.fact][0]} {FACTS[t.fact][1]} {t.messages[-1].text!r}" for t in self.talks),
        ]
        return "\n".join(lines)


async def all_talks(model: ChatDeltaMem) -> Outcome:
    talks, full = [Talk(fact, RECENT) for fact in range(len(FACTS))], Talk(0, 1000)
    await asyncio.gather(*(talk.run(model) for talk in [*talks, full]))
    for fact, (text, _, _) in enumerate(FACTS):
        await model.ainvoke(text, session_id=f"fact {fact}")
    fresh = [await answers(model, fact, f"fact {fact}") for fact in range(len(FACTS))].count(True)
    known = [await answers(model, fact, None) for fact in range(len(FACTS))].count(True)
    plain = [await answers(model, talk.fact, talk.session) for talk in talks].count(True)
    return Outcome(talks, full, fresh, known, plain)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    with DeltaMemEngine.bundled(store=":memory:") as engine:
        return asyncio.run(all_talks(ChatDeltaMem(engine=engine, max_new_tokens=16)))


def test_the_loop_holds_and_prompts_stay_flat(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(outcome)
    for talk in outcome.talks:
        assert talk.broken == []
        assert max(talk.prompts[TURNS // 2 :]) <= 1.1 * max(talk.prompts[: TURNS // 2])
    assert outcome.full.prompts[-1] > 2 * max(outcome.talks[0].prompts)


def test_more_is_known_than_without_a_memory(outcome: Outcome) -> None:
    assert outcome.kept > outcome.known


def test_facts_of_the_first_turn_are_known_as_well_as_right_after(outcome: Outcome) -> None:
    assert outcome.kept >= outcome.fresh - 1


def table(talks: list[Talk], full: Talk) -> str:
    lines = [f"| turn | prompt tokens, recent_messages={RECENT} | full history |", "|---|---|---|"]
    for turn in (1, *range(5, TURNS + 1, 5)):
        some = [talk.prompts[turn - 1] for talk in talks]
        lines.append(f"| {turn} | {min(some)} to {max(some)} | {full.prompts[turn - 1]} |")
    return "\n".join(["", *lines])
