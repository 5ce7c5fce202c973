"""A framework's view of a conversation, passed to the engine as frameworks pass it, and what must come of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deltamem_agents import DeltaMemEngine, Message, MessageLike, Turn
from tests.engine.ledger import WrittenTokens
from tests.engine.reference import NaiveSession, message_ids

TOKENS = 4
Style = Callable[[list[Message], list[Message]], list[Message]]

SUMMARY = Message(role="user", content="(earlier: a talk)")


def full(past: list[Message], new: list[Message]) -> list[Message]:
    return [*past, *new]


def trimmed(past: list[Message], new: list[Message]) -> list[Message]:
    return [*past[-3:], *new]


def only_new(past: list[Message], new: list[Message]) -> list[Message]:
    return new


def summarised(past: list[Message], new: list[Message]) -> list[Message]:
    return [SUMMARY, *past[-2:], *new] if len(past) > 2 else [*past, *new]


def cleared(past: list[Message], new: list[Message]) -> list[Message]:
    kept = [m.model_copy(update={"content": "[gone]"}) if m.role == "tool" else m for m in past]
    return [*kept, *new]


STYLES: dict[str, Style] = {style.__name__: style for style in (full, trimmed, only_new, summarised, cleared)}


@dataclass
class Said:
    """One turn as the client sees it."""

    shown: list[Message]
    new: list[Message]
    reply: Message
    thread: str


@dataclass
class Client:
    """Talks to a session, and keeps its own copy of the conversation."""

    engine: DeltaMemEngine
    style: Style
    ids: bool
    session: str = "alice"
    thread: str = ""
    turns: list[Said] = field(default_factory=list)
    counter: int = 0

    @property
    def past(self) -> list[Message]:
        return [m for turn in self.turns for m in (*turn.new, turn.reply)]

    def message(self, role: str, text: str) -> Message:
        self.counter += 1
        id = f"{self.thread or 'client'} {self.counter}" if self.ids else None
        return Message.model_validate({"role": role, "content": text, "id": id})

    def say(self, new: Sequence[Message], *, calls: int = 1) -> Said:
        """New messages; with more calls than one the earlier replies are lost on the way."""
        passed = self.style(self.past, list(new))
        own = {m.digest() for m in self.past}, {m.id for m in self.past if m.id is not None}
        shown = [m for m in passed[: len(passed) - len(new)] if m.digest() not in own[0] and m.id not in own[1]]
        if not self.turns and not self.ids:
            assert calls == 1, "without ids the first message, said again, is new"
        for _ in range(calls):
            turn = self._call(passed)
        said = Said(shown, list(new), self._reply(turn), self.thread)
        self.turns.append(said)
        return said

    def regenerate(self) -> Said:
        """Another reply to the last message."""
        last = self.turns.pop()
        return self.say(last.new)

    def edit(self, number: int, text: str) -> Said:
        """Another message instead of that of turn `number`; what came after is gone."""
        del self.turns[number:]
        return self.say([self.message("user", text)])

    def _call(self, passed: list[Message]) -> Turn:
        options = {"session": self.session, "max_new_tokens": TOKENS}
        return self.engine.generate(list[MessageLike](passed), thread=self.thread or None, **options)  # type: ignore[arg-type]

    def _reply(self, turn: Turn) -> Message:
        return turn.reply if self.ids else turn.reply.model_copy(update={"id": None, "snapshot": None})


def check_ledger(
    engine: DeltaMemEngine, written: WrittenTokens, said: Sequence[Message], session: str = "alice"
) -> None:
    """What the session's line holds, and what was written into its state, is what was said, once each."""
    head = engine.session(session).info.head
    line = engine.store.line(head) if head is not None else []
    assert [e.digest for turn in line for e in turn.entries] == [m.digest() for m in said]
    roles = engine.model.adapter.config.absorb_roles
    assert written.behind(engine.state(session)) == [i for m in said if m.role in roles for i in message_ids(m)]


def replayed(engine: DeltaMemEngine, turns: Sequence[Said], recent: int) -> NaiveSession:
    """A fresh session that is told the visible line."""
    naive = NaiveSession(engine.model, recent)
    for turn in turns:
        naive.turn(turn.new, shown=turn.shown, reply=turn.reply.content, thread=turn.thread)
    return naive
