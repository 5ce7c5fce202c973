"""A LangGraph thread as its user sees it, and what a session must hold after whatever is done to it."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import StateSnapshot

from deltamem_agents import DeltaMemEngine, MemoryState, Message
from langchain_deltamem import ChatDeltaMem
from tests.engine.ledger import WrittenTokens
from tests.engine.reference import NaiveSession, message_ids


class Seeds(AgentMiddleware):
    """Another seed for each call, so that asking again gets another reply."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        return handler(request.override(model_settings={**request.model_settings, "seed": next(self.numbers)}))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        return await handler(request.override(model_settings={**request.model_settings, "seed": next(self.numbers)}))


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
        """Another message instead of one: from the checkpoint before it."""
        self.run({"messages": [HumanMessage(text)]}, self.after(turn - 1).config)

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
        said = [plain(message) for message in visible]
        point, base = 0, -1
        for number, (label, turn) in enumerate(self.turns):
            if label == thread and said[point : point + len(turn)] == turn and point + len(turn) < len(said):
                point, base = point + len(turn), number
        others = [label for label, _ in self.turns[base + 1 :] if label != thread]
        mine = [label for label, _ in self.turns[base + 1 :] if label == thread]
        new = said[point:]
        if mine and others:
            self.appended = True
            new = [message for message in new if message not in self.messages]
        elif mine:
            del self.turns[base + 1 :]
        self.turns.append((thread, new))

    def state(self, engine: DeltaMemEngine) -> MemoryState:
        """That of a fresh session which is told the visible line."""
        naive = NaiveSession(engine.model, engine.recent_messages)
        for thread, turn in self.turns:
            naive.turn(turn[:-1], reply=turn[-1].content, thread=thread)
        return naive.state

    def check(self, engine: DeltaMemEngine, written: WrittenTokens, session: str = "alice") -> None:
        """The ledger, the tokens behind the state, and the state itself."""
        head = engine.session(session).info.head
        line = [] if head is None else engine.store.line(head)
        held = [(turn.thread, [entry.digest for entry in turn.entries]) for turn in line]
        assert held == [(thread, [message.digest() for message in turn]) for thread, turn in self.turns]
        state, roles = engine.state(session), engine.model.adapter.config.absorb_roles
        assert written.behind(state) == [i for m in self.messages if m.role in roles for i in message_ids(m)]
        if not self.appended:
            assert near(state, self.state(engine))


def plain(message: BaseMessage) -> Message:
    role = "user" if isinstance(message, HumanMessage) else "assistant"
    return Message(role=role, content=message.text, id=message.id)  # type: ignore[arg-type]


def near(state: MemoryState, expected: MemoryState) -> bool:
    return bool((state.tensor - expected.tensor).norm() <= 1e-3 * expected.tensor.norm())
