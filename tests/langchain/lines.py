"""A LangGraph thread as its user sees it, and what a session must hold after whatever is done to it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import StateSnapshot

from deltamem_agents import DeltaMemEngine, MemoryState, Message
from langchain_deltamem import ChatDeltaMem
from tests.engine.ledger import WrittenTokens
from tests.engine.reference import NaiveSession, message_ids
from tests.langchain.steering import Seeds


def seeded_agent(model: ChatDeltaMem, **options: Any) -> Any:
    """An agent whose replies differ from call to call, on a checkpointer."""
    lively = model.model_copy(update={"temperature": 2.0})
    return create_agent(lively, middleware=[Seeds()], checkpointer=InMemorySaver(), **options)


@dataclass
class Talk:
    """One thread of an agent, and what can be done to it."""

    agent: Any
    thread: str
    session: str = "alice"
    asynchronous: bool = False

    @property
    def config(self) -> RunnableConfig:
        return {"configurable": {"thread_id": self.thread, "session_id": self.session}}

    @property
    def visible(self) -> list[AnyMessage]:
        return list(self.agent.get_state(self.config).values.get("messages", []))

    @property
    def turns(self) -> int:
        return sum(isinstance(message, AIMessage) for message in self.visible)

    def say(self, text: str) -> None:
        self.run({"messages": [HumanMessage(text)]}, self.config)

    def regenerate(self, turn: int) -> None:
        """Runs the model again on the checkpoint before a reply."""
        self.run(None, self.before_reply(turn).config)

    def edit(self, turn: int, text: str) -> None:
        """Another message instead of one, not the first: from the checkpoint before it."""
        self.run({"messages": [HumanMessage(text)]}, self.after(max(turn, 2) - 1).config)

    def travel(self, turn: int, text: str) -> None:
        """Goes on from an old checkpoint."""
        self.run({"messages": [HumanMessage(text)]}, self.after(turn).config)

    def replay(self, turn: int) -> None:
        """Runs everything again from the checkpoint that took the input in."""
        inputs = [s for s in self.history() if s.metadata["source"] == "input" and replies(s) == turn - 1]
        self.run(None, inputs[0].config)

    def update_human(self, turn: int, text: str) -> None:
        before = self.before_reply(turn)
        changed = HumanMessage(text, id=before.values["messages"][-1].id)
        self.run(None, self.agent.update_state(before.config, {"messages": [changed]}))

    def update_reply(self, turn: int, text: str, *, handle: bool) -> None:
        """Rewrites a reply, with or without the metadata it had, and goes on from there."""
        after = self.after(turn)
        reply = after.values["messages"][-1]
        changed = reply.model_copy(update={"content": text}) if handle else AIMessage(text, id=reply.id)
        config = self.agent.update_state(after.config, {"messages": [changed]})
        self.run({"messages": [HumanMessage("go on")]}, config)

    def history(self) -> list[StateSnapshot]:
        """Checkpoints of the branch that is visible now, latest first."""
        states = list(self.agent.get_state_history(self.config))
        ids = {message.id for message in self.visible}
        return [s for s in states if {message.id for message in s.values.get("messages", [])} <= ids]

    def before_reply(self, turn: int) -> StateSnapshot:
        return next(s for s in self.history() if s.next == ("model",) and replies(s) == turn - 1)

    def after(self, turn: int) -> StateSnapshot:
        return next(s for s in self.history() if not s.next and replies(s) == turn)

    def run(self, given: Any, config: Any) -> None:
        if self.asynchronous:
            asyncio.run(self.agent.ainvoke(given, self.whole(config)))
        else:
            self.agent.invoke(given, self.whole(config))

    def whole(self, config: Any) -> RunnableConfig:
        """A checkpoint's config names thread and checkpoint alone: whose memory is used must be said again."""
        return {"configurable": {**config["configurable"], "session_id": self.session}}


def replies(state: StateSnapshot) -> int:
    return sum(isinstance(message, AIMessage) for message in state.values.get("messages", []))


@dataclass
class Line:
    """A session's line by the rules: what later turns of the same thread said is undone, that of others never."""

    turns: list[tuple[str, list[Message]]] = field(default_factory=list)
    appended: bool = False
    """Whether going back had to be an addition: then windows hold what is not visible any more."""

    @property
    def messages(self) -> list[Message]:
        return [message for _, turn in self.turns for message in turn]

    def follow(self, thread: str, visible: Sequence[BaseMessage]) -> None:
        """Takes in a thread after a turn."""
        *said, reply = [plain(message) for message in visible]
        places = {m.id: (number, place) for number, (_, turn) in enumerate(self.turns) for place, m in enumerate(turn)}
        held = {m.id: m for _, turn in self.turns for m in turn}  # of an id that is there twice, the last
        known = [number for number, m in enumerate(said) if held.get(m.id) == m]
        new, kept, since = said, list[Message](), len(self.turns)
        if known:
            new = said[known[-1] + 1 :]
            since, place = places[said[known[-1]].id]
            kept = self.turns[since][1][: place + 1]
            if kept == self.turns[since][1]:
                kept, since = [], since + 1
        elif said[0].id in places:
            since, _ = places[said[0].id]
        if not kept:  # what other threads said before the first turn that goes may stay
            since = next((n for n in range(since, len(self.turns)) if self.turns[n][0] == thread), since)
        mine = any(label == thread for label, _ in self.turns[since:])
        others = any(label != thread for label, _ in self.turns[since:])
        if mine and others:
            self.appended, kept = True, []
        elif mine:
            del self.turns[since:]
        self.turns.append((thread, [*kept, *new, reply]))

    def state(self, engine: DeltaMemEngine) -> MemoryState:
        """That of a fresh session which is told the visible line."""
        naive = NaiveSession(engine.model, engine.recent_messages)
        for thread, turn in self.turns:
            naive.turn(turn[:-1], reply=turn[-1].content, thread=thread)
        return naive.state

    def check(self, engine: DeltaMemEngine, written: WrittenTokens, session: str = "alice") -> None:
        """The ledger, and the tokens behind the state."""
        head = engine.session(session).info.head
        line = [] if head is None else engine.store.line(head)
        held = [(turn.thread, [entry.digest for entry in turn.entries]) for turn in line]
        assert held == [(thread, [message.digest() for message in turn]) for thread, turn in self.turns]
        state, roles = engine.state(session), engine.model.adapter.config.absorb_roles
        assert written.behind(state) == [i for m in self.messages if m.role in roles for i in message_ids(m)]

    def check_state(self, engine: DeltaMemEngine, session: str = "alice") -> None:
        """The state itself."""
        if not self.appended:
            assert near(engine.state(session), self.state(engine))


def plain(message: BaseMessage) -> Message:
    role = "user" if isinstance(message, HumanMessage) else "assistant"
    return Message(role=role, content=message.text, id=message.id)  # type: ignore[arg-type]


def near(state: MemoryState, expected: MemoryState) -> bool:
    return bool((state.tensor - expected.tensor).norm() <= 1e-3 * expected.tensor.norm())
