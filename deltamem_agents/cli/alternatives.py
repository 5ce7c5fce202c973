"""The same conversation under what one would use instead: what a turn costs, and what is still known at the end."""

import random
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from langgraph.store.memory import InMemoryStore

from deltamem_agents.backbone.load import BUNDLED
from deltamem_agents.bench.conversation import REPLY_TOKENS, note
from deltamem_agents.bench.machine import describe
from deltamem_agents.bench.questions import ANSWER_TOKENS, Told, draw_facts
from deltamem_agents.bench.subject import load_subject
from deltamem_agents.engine import DeltaMemEngine, Turn
from deltamem_agents.messages import MessageLike
from deltamem_agents.train import contains

RECENT = 8
"""Windows hold this many to twice as many messages."""
FOUND = 4
"""So many memories are retrieved for a turn."""


@dataclass
class Way(ABC):
    """One way to remember, and what its turns have cost."""

    engine: DeltaMemEngine
    seconds: list[float] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    calls: int = 0
    """Forward passes of a model over a text, of the last turn: replies and embeddings."""

    def say(self, text: str) -> None:
        """Takes a turn."""
        self.calls, start = 0, time.perf_counter()
        turn = self.turn(text)
        self.seconds.append(time.perf_counter() - start)
        self.prompts.append(turn.usage.prompt_tokens)

    @abstractmethod
    def turn(self, text: str) -> Turn:
        """Replies, and remembers what was said."""

    @abstractmethod
    def ask(self, question: str) -> str:
        """Answers, and remembers nothing of it."""

    def reply(self, messages: Sequence[MessageLike], *, tokens: int = REPLY_TOKENS) -> Turn:
        """The frozen model's."""
        self.calls += 1
        return self.engine.generate(messages, max_new_tokens=tokens)


@dataclass
class History(Way):
    """All that was said is in every prompt."""

    said: list[MessageLike] = field(default_factory=list)

    def turn(self, text: str) -> Turn:
        """The whole history, and this."""
        self.said.append(_message("user", text))
        turn = self.reply(self.said)
        self.said.append(_message("assistant", turn.reply.content))
        return turn

    def ask(self, question: str) -> str:
        """With the whole history in front."""
        return self.reply([*self.said, _message("user", question)], tokens=ANSWER_TOKENS).reply.content


@dataclass
class Retrieval(Way):
    """LangGraph's store: what users say is put there, and what resembles the message is shown in the system prompt.

    Texts are embedded by the frozen model, the mean of its last hidden states: there is no other model here.
    """

    said: list[MessageLike] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Opens a store that searches by meaning."""
        size = self.engine.model.backbone.config.hidden_size
        self.store = InMemoryStore(index={"dims": size, "embed": self._embed, "fields": ["text"]})

    def turn(self, text: str) -> Turn:
        """What resembles it, the window, and this; then the store takes it."""
        shown = self._shown(text)
        turn = self.reply(shown)
        self.store.put(("memories",), str(len(self.prompts)), {"text": text})
        self.said += [shown[-1], _message("assistant", turn.reply.content)]
        if len(self.said) > 2 * RECENT:
            self.said = self.said[-RECENT:]
        return turn

    def ask(self, question: str) -> str:
        """With what resembles it."""
        return self.reply(self._shown(question), tokens=ANSWER_TOKENS).reply.content

    def _shown(self, text: str) -> list[MessageLike]:
        found = [item.value["text"] for item in self.store.search(("memories",), query=text, limit=FOUND)]
        told = "\n".join(["What the user has told you:", *(f"- {each}" for each in found)])
        return [_message("system", told), *self.said, _message("user", text)]

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.calls += len(texts)
        device, model = self.engine.model.device, self.engine.model.backbone.base_model
        tokens = (torch.tensor([self.engine.token_ids(text)], device=device) for text in texts)
        return [model(ids).last_hidden_state[0].mean(0).tolist() for ids in tokens]


@dataclass
class Memory(Way):
    """A session of this package."""

    def turn(self, text: str) -> Turn:
        """The window, and this."""
        self.calls += 1
        return self.engine.generate([_message("user", text)], session="bench", max_new_tokens=REPLY_TOKENS)

    def ask(self, question: str) -> str:
        """With the window, and the memory."""
        asked = [_message("user", question)]
        found = self.engine.generate(asked, session="bench", memory="read", max_new_tokens=ANSWER_TOKENS)
        return found.reply.content


def compare(*, turns: int = 40, facts: int = 4, seed: int = 0, model: str | Path = BUNDLED) -> str:
    """Holds one conversation in three ways, in turn, and gives a table as Markdown.

    Args:
        turns: how many.
        facts: how many of the first turns tell a fact; the others are notes of stock.
        seed: of what is said.
        model: "bundled", or a folder.

    Raises:
        BackboneError: the model cannot be loaded.
        ConfigError: there are not as many facts.
    """
    told, draw = draw_facts(facts, seed=seed), random.Random(seed)
    said = [*(fact.statement for fact in told), *(note(draw, number) for number in range(facts + 1, turns + 1))][:turns]
    subject = load_subject(model, seed=seed)
    lines = [f"- {name}: {value}" for name, value in describe(subject, model, seed=seed).items()]
    with (
        tempfile.TemporaryDirectory() as folder,
        DeltaMemEngine(
            subject.model, subject.tokenizer, store=Path(folder) / "bench.db", recent_messages=RECENT
        ) as engine,
    ):
        ways: dict[str, Way] = {
            "plain history": History(engine),
            "LangGraph's store, 4 retrieved": Retrieval(engine),
            "this": Memory(engine),
        }
        for text in said:
            for way in ways.values():
                way.say(text)
        lines += ["", f"| | prompt tokens, turn {turns} | s a turn, last 10 | model calls a turn | facts still known |"]
        lines += ["|---|---|---|---|---|", *(_line(name, way, told) for name, way in ways.items())]
    return "\n".join(lines)


def _line(name: str, way: Way, told: Sequence[Told]) -> str:
    seconds, calls = statistics.median(way.seconds[-10:]), way.calls
    right = sum(contains(way.ask(fact.question), fact.value) for fact in told)
    return f"| {name} | {way.prompts[-1]:,} | {seconds:.2f} | {calls} | {right} of {len(told)} |"


def _message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}
