"""Recall from the state alone, as a user would meet it: facts told live, free greedy answers, controls beside them."""

import math
import platform
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import transformers

from deltamem_agents.engine import DeltaMemEngine, Turn
from deltamem_agents.evaluate.intervals import wilson
from deltamem_agents.train.episodes import Episode, EpisodeMix, draw_episode
from deltamem_agents.train.facts import Values, training_vocabulary

Condition = Literal["own", "swapped", "frozen"]
ValueKind = Literal["listed", "unseen"]
CONDITIONS: tuple[Condition, ...] = ("own", "swapped", "frozen")
ANSWER_TOKENS = 16
REPLY_TOKENS = 8  # replies are read past, not absorbed: a short one changes nothing


@dataclass(frozen=True, slots=True)
class RecallRow:
    """Right answers of one kind of episode under one condition."""

    facts: int
    values: ValueKind
    """From lists that training knew, or words that never occurred in training."""
    condition: Condition
    right: int
    episodes: int

    @property
    def rate(self) -> float:
        """Share of right answers."""
        return self.right / self.episodes


@dataclass(frozen=True, slots=True)
class RecallReport:
    """What `evaluate_recall` found, and under what circumstances."""

    rows: tuple[RecallRow, ...]
    seed: int
    fingerprint: str
    versions: str

    def render(self) -> str:
        """A Markdown table, with 95 % intervals."""
        lines = [
            f"Exact value in a free greedy answer, state only, held-out phrasings; 95 % intervals; seed {self.seed}.",
            f"{self.fingerprint}; {self.versions}",
            "",
            "| facts told | values | own memory | somebody else's memory | frozen model |",
            "|---|---|---|---|---|",
        ]
        for facts, values in dict.fromkeys((r.facts, r.values) for r in self.rows):
            cells = [r for c in CONDITIONS for r in self.rows if (r.facts, r.values, r.condition) == (facts, values, c)]
            lines.append(f"| {facts} | {values} | " + " | ".join(map(_cell, cells)) + " |")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return asdict(self)


def evaluate_recall(
    engine: DeltaMemEngine,
    *,
    episodes: int = 200,
    facts: Sequence[int] = (1, 3),
    values: Sequence[ValueKind] = ("listed", "unseen"),
    seed: int = 0,
    together: int = 20,
    progress: Callable[[str], None] | None = None,
) -> RecallReport:
    """Tells facts one message at a time, then asks for one of them with nothing of what was said in the prompt.

    Each fact is answered by the model as in a chat. Every question is asked three times: of the session that was told,
    of another episode's session, and of the frozen model. Right means: the exact value stands in the answer.

    Args:
        engine: the engine; its sessions named `recall-…` are deleted afterwards.
        episodes: of each kind, at least two.
        facts: how many facts an episode tells; one kind of episode for each number.
        values: whether values come from lists that training knew, or are words that never occurred in training.
        seed: draws the episodes.
        together: how many sessions are decoded together.
        progress: called with a line for each row that is done.
    """
    vocabulary = Values(training_vocabulary(engine.tokenizer))
    rows = []
    for count in facts:
        for name in values:
            mix = EpisodeMix(facts=(count,), open_share=0.0 if name == "listed" else 1.0)
            rng = random.Random(f"recall {seed} {count} {name}")
            drawn = [draw_episode(mix, vocabulary, rng, split="test") for _ in range(episodes)]
            right = dict.fromkeys(CONDITIONS, 0)
            groups = math.ceil(episodes / together)  # of even sizes, so that each has somebody to swap with
            for group in range(groups):
                for condition, hits in _ask(engine, drawn[group::groups]).items():
                    right[condition] += hits
            for condition in CONDITIONS:
                rows.append(RecallRow(count, name, condition, right[condition], episodes))
            if progress:
                progress(f"{count} facts, {name} values: " + ", ".join(f"{r.condition} {_cell(r)}" for r in rows[-3:]))
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return RecallReport(tuple(rows), seed, engine.fingerprint, versions)


def _ask(engine: DeltaMemEngine, episodes: Sequence[Episode]) -> dict[Condition, int]:
    """Right answers under each condition for a group of episodes of at least two, swapped among themselves."""
    sessions = [f"recall-{number}" for number in range(len(episodes))]
    for name in sessions:
        if engine.store.session(name) is not None:
            engine.forget(name)
    for told in zip(*(e.earlier for e in episodes), strict=True):
        engine.batch([[m] for m in told], sessions=sessions, recent_messages=0, max_new_tokens=REPLY_TOKENS)
    questions = [[{"role": "user", "content": e.question}] for e in episodes]

    def answers(names: Sequence[str | None]) -> list[Turn]:
        return engine.batch(
            questions, sessions=names, memory="read", recent_messages=0, max_new_tokens=ANSWER_TOKENS
        )

    asked: dict[Condition, list[Turn]] = {
        "own": answers(sessions),
        "swapped": answers([*sessions[1:], sessions[0]]),
        "frozen": answers([None] * len(sessions)),
    }
    for name in sessions:
        engine.forget(name)
    return {
        condition: sum(_right(turn.reply.content, e.value) for turn, e in zip(turns, episodes, strict=True))
        for condition, turns in asked.items()
    }


def _right(answer: str, value: str) -> bool:
    """Whether the value stands in the answer as a word of its own, in any case."""
    words = "".join(c if c.isalnum() else " " for c in answer.lower()).split()
    return value.lower() in words


def _cell(row: RecallRow) -> str:
    low, high = wilson(row.right, row.episodes)
    return f"{row.rate:.1%} ({low:.0%}–{high:.0%})"
