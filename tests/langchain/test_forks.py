"""The memory follows LangGraph's threads wherever they go: forks, time travel, edited state, replays, retries."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRetryMiddleware
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import RetryPolicy

from deltamem_agents import DeltaMemEngine
from langchain_deltamem import ChatDeltaMem
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for
from tests.engine.ledger import WrittenTokens
from tests.langchain.lines import Line, Talk, seeded_agent
from tests.langchain.steering import Seeds

RECENT = 2
"""Windows of two to four messages: smaller than any history here."""

Act = Callable[[Talk, int], None]
ACTS: dict[str, Act] = {
    "linear": lambda talk, turn: talk.say("linear"),
    "regenerate": lambda talk, turn: talk.regenerate(turn),
    "edit": lambda talk, turn: talk.edit(turn, "edited"),
    "travel": lambda talk, turn: talk.travel(turn, "from here"),
    "update_human": lambda talk, turn: talk.update_human(turn, "rewritten"),
    "update_reply": lambda talk, turn: talk.update_reply(turn, "corrected", handle=True),
    "update_reply_bare": lambda talk, turn: talk.update_reply(turn, "corrected", handle=False),
    "replay": lambda talk, turn: talk.replay(turn),
}


def open_engine(recent: int) -> DeltaMemEngine:
    return DeltaMemEngine(
        model_for(("user", "assistant", "tool")), byte_tokenizer(), store=":memory:", recent_messages=recent
    )


def chat(engine: DeltaMemEngine) -> ChatDeltaMem:
    return ChatDeltaMem(engine=engine, max_new_tokens=4)


@pytest.fixture
def engine() -> Iterator[DeltaMemEngine]:
    with open_engine(RECENT) as engine:
        yield engine


@pytest.fixture
def written(engine: DeltaMemEngine) -> Iterator[WrittenTokens]:
    with WrittenTokens(engine.model) as written:
        yield written


class Table:
    """Threads of one user, and the line that must come of them."""

    def __init__(self, engine: DeltaMemEngine, written: WrittenTokens, *, asynchronous: bool = False) -> None:
        self.engine, self.written, self.line = engine, written, Line()
        agent = seeded_agent(chat(engine))
        self.talks = {name: Talk(agent, name, asynchronous=asynchronous) for name in ("a", "b")}

    def do(self, thread: str, act: Act, turn: int = 0) -> None:
        talk = self.talks[thread]
        act(talk, turn)
        self.line.follow(thread, talk.visible)
        self.line.check(self.engine, self.written)

    def say(self, threads: str) -> None:
        for thread in threads:
            number = len(self.line.messages)
            self.do(thread, lambda talk, _, number=number: talk.say(f"message {number}"))  # type: ignore[misc]
        self.line.check_state(self.engine)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("name", ACTS)
def test_what_the_thread_undoes_the_memory_undoes(
    name: str, asynchronous: bool, engine: DeltaMemEngine, written: WrittenTokens
) -> None:
    """Another thread has written in between, but nothing since the point that is gone back to."""
    table = Table(engine, written, asynchronous=asynchronous)
    table.say("abaabbaaa")
    table.do("a", ACTS[name], 5)
    assert not table.line.appended
    table.line.check_state(engine)
    table.say("aba")
    table.do("a", ACTS[name], table.talks["a"].turns)
    table.line.check_state(engine)


@pytest.mark.parametrize("name", ACTS)
def test_what_another_thread_has_said_since_is_kept(
    name: str, engine: DeltaMemEngine, written: WrittenTokens
) -> None:
    table = Table(engine, written)
    table.say("abaabba")
    table.do("a", ACTS[name], 2)
    assert table.line.appended == (name != "linear")
    table.say("ab")
    notes = [turn.note for turn in engine.session("alice").log() if turn.note is not None]
    assert len(notes) == (name != "linear")
    assert all("'b' wrote since" in note for note in notes)


STEP = st.tuples(st.sampled_from("aab"), st.sampled_from([*ACTS, *["linear"] * 3]), st.integers(0, 9))


@settings(max_examples=12)
@given(st.lists(STEP, max_size=5), st.sampled_from([0, 2, 8]))
@example([("a", "update_reply", 0), ("a", "edit", 0)], 2)  # an edited reply is known by its handle where it stands now
def test_any_sequence(steps: list[tuple[str, str, int]], recent: int) -> None:
    with open_engine(recent) as engine, WrittenTokens(engine.model) as written:
        table = Table(engine, written)
        table.say("aabb")
        for thread, name, number in steps:
            table.do(thread, ACTS[name], 1 + number % table.talks[thread].turns)
        table.line.check_state(engine)


class TestRetries:
    """Something behind the model fails, and the graph runs the model again on the same messages."""

    class Flaky(AgentMiddleware):
        """Loses the model's reply now and then."""

        failures = 0

        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            reply = handler(request)
            if self.failures:
                self.failures -= 1
                raise ConnectionError("lost on the way")
            return reply

        def after_model(self, state: Any, runtime: Any) -> None:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("lost later")

    @pytest.mark.parametrize("failures", [1, 2])
    def test_retry_middleware(self, failures: int, engine: DeltaMemEngine, written: WrittenTokens) -> None:
        flaky = self.Flaky()
        retry = ModelRetryMiddleware(max_retries=3, initial_delay=0.0, jitter=False)
        model = chat(engine).model_copy(update={"temperature": 2.0})
        agent = create_agent(model, middleware=[retry, flaky, Seeds()], checkpointer=InMemorySaver())
        self.talk_through(agent, lambda: setattr(flaky, "failures", failures), engine, written)

    def test_resumed_after_an_error(self, engine: DeltaMemEngine, written: WrittenTokens) -> None:
        """`invoke(None)` goes on from the last checkpoint, which is before the model's node."""
        failing: list[bool] = []
        model = chat(engine).model_copy(update={"temperature": 2.0})

        def node(state: MessagesState) -> dict[str, Any]:
            reply = model.invoke(state["messages"], seed=len(failing))
            if failing:
                failing.pop()
                raise ConnectionError("lost on the way")
            return {"messages": [reply]}

        talk, line = Talk(graph_of(node), "a"), Line()
        for text in ("one", "two", "three"):
            failing[:] = [True, True]
            with pytest.raises(ConnectionError):
                talk.say(text)
            with pytest.raises(ConnectionError):
                talk.run(None, talk.config)
            talk.run(None, talk.config)
            line.follow("a", talk.visible)
            line.check(engine, written)
        line.check_state(engine)

    def test_retry_policy(self, engine: DeltaMemEngine, written: WrittenTokens) -> None:
        failing: list[bool] = []
        model = chat(engine)

        def node(state: MessagesState) -> dict[str, Any]:
            reply = model.invoke(state["messages"])
            if failing:
                failing.pop()
                raise ConnectionError("lost on the way")
            return {"messages": [reply]}

        graph = graph_of(node, retry_policy=RetryPolicy(initial_interval=0.0, jitter=False))
        self.talk_through(graph, lambda: failing.append(True), engine, written)

    def test_a_failure_in_a_later_node_runs_the_model_once(
        self, engine: DeltaMemEngine, written: WrittenTokens
    ) -> None:
        failing: list[bool] = []
        model = chat(engine)

        def node(state: MessagesState) -> dict[str, Any]:
            return {"messages": [model.invoke(state["messages"])]}

        def later(state: MessagesState) -> None:
            if failing:
                failing.pop()
                raise ConnectionError("lost later")

        talk, line = Talk(graph_of(node, later), "a"), Line()
        for text in ("one", "two", "three"):
            failing.append(True)
            with pytest.raises(ConnectionError):
                talk.say(text)
            talk.run(None, talk.config)
            line.follow("a", talk.visible)
            line.check(engine, written)
        line.check_state(engine)
        assert len(engine.session("alice").log()) == 3

    def talk_through(
        self, agent: Any, fail: Callable[[], None], engine: DeltaMemEngine, written: WrittenTokens
    ) -> None:
        talk, line = Talk(agent, "a"), Line()
        for text in ("one", "two", "three"):
            fail()
            talk.say(text)
            line.follow("a", talk.visible)
            line.check(engine, written)
        line.check_state(engine)
        assert len(engine.session("alice").log()) > 3


def graph_of(node: Any, later: Any = None, **options: Any) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("model", node, **options)
    builder.add_edge(START, "model")
    if later is None:
        builder.add_edge("model", END)
    else:
        builder.add_node("later", later)
        builder.add_edge("model", "later")
        builder.add_edge("later", END)
    return builder.compile(checkpointer=InMemorySaver())
