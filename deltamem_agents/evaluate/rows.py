"""The rows of the recall table: which episodes, what is counted, and what is aimed at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from deltamem_agents.evaluate.judging import Measure
from deltamem_agents.train.episodes import EpisodeMix

Condition = Literal["own", "swapped", "frozen", "before"]
"""Whose memory answers: the session's that was told, another episode's, none, or the own one at an earlier time."""
LABELS, EXAMPLES = 8, 4


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should reach."""

    text: str
    met: Callable[[Mapping[Condition, float]], bool]
    """Decides on the shares under each condition."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: a share of a row's answers."""

    title: str
    target: Target | None
    measure: Measure = "right"
    about: str | None = None
    """Counts only episodes with this tag."""
    condition: Condition = "own"
    """What stands in the column of the own memory."""


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of episodes with its figures."""

    mixes: tuple[EpisodeMix, ...]
    """As many episodes are drawn of each."""
    figures: tuple[Figure, ...]
    later: bool = False
    """Whether more questions are asked and answered before the one that counts."""
    perplexity: bool = False
    """Whether the memory is read over unrelated text, and no question asked."""


def at_least(share: float) -> Target:
    """The own memory's share is this or more."""
    return Target(f"≥ {share * 100:.0f} %", lambda found: found["own"] >= share)


def at_most(share: float) -> Target:
    """The own memory's share is this or less."""
    return Target(f"≤ {share * 100:.0f} %", lambda found: found["own"] <= share)


def _recall(title: str, target: float, **mix: object) -> Row:
    return Row((EpisodeMix.model_validate(mix),), (Figure(title, at_least(target)),))


def _within(points: float) -> Target:
    return Target(f"≥ before − {points * 100:.0f}", lambda found: found["own"] >= found["before"] - points)


_TWICE = Target("≥ 2 × frozen", lambda found: found["own"] >= 2 * found["frozen"] and found["own"] > 0)
_UNSEEN = {"open_share": 1.0, "made_up": 0.5}
_LABEL_MAP = EpisodeMix(kinds={"labels": 1.0}, labels=(LABELS,), examples=(EXAMPLES,))

ROWS: dict[str, Row] = {
    "facts-1": _recall("1 fact", 0.97, facts=(1,)),
    "facts-4": _recall("4 facts", 0.90, facts=(4,)),
    "facts-8": _recall("8 facts", 0.75, facts=(8,)),
    "talk-256": _recall("4 facts, then 256 tokens of other talk", 0.80, facts=(4,), filler=(256,)),
    "talk-1024": _recall("4 facts, then 1,024 tokens of other talk", 0.60, facts=(4,), filler=(1024,)),
    "unseen-words-1": _recall("1 fact, words and made-up names never seen", 0.90, facts=(1,), **_UNSEEN),
    "unseen-words-4": _recall("4 facts, words and made-up names never seen", 0.70, facts=(4,), **_UNSEEN),
    "unseen-attributes": _recall("1 fact, attributes never seen", 0.50, facts=(1,), attributes="unseen"),
    "updated": Row(
        (EpisodeMix(kinds={"updated": 1.0}, facts=(2,)),),
        (Figure("2 facts, one updated: new value", at_least(0.90)), Figure("old value", at_most(0.05), "stale")),
    ),
    "untold": Row(
        (EpisodeMix(kinds={"untold": 1.0}, facts=(2,)), EpisodeMix(facts=(2,))),
        (
            Figure("2 facts, another never told: says so", at_least(0.85), about="untold"),
            Figure("2 facts, one of them asked: wrongly says it was never told", at_most(0.05), "unsure", "told"),
        ),
    ),
    "labels": Row((_LABEL_MAP,), (Figure(f"label map, {LABELS} labels × {EXAMPLES} examples, new texts", _TWICE),)),
    "live-turns": Row(
        (),
        (
            Figure("4 facts", None, condition="before"),
            Figure("4 facts, after 10 questions and answers, wrong ones too", _within(0.05)),
        ),
        later=True,
    ),
    "perplexity": Row(
        (EpisodeMix(facts=(8,), filler=(256,)),),
        (Figure("perplexity of unrelated text, full memory against none", at_most(0.01)),),
        perplexity=True,
    ),
}
"""By name."""
