"""The rows of the recall table: which episodes, what is counted, and what is aimed at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from deltamem_agents.evaluate.judging import Measure
from deltamem_agents.train.episodes import EpisodeMix

Condition = Literal["own", "swapped", "frozen", "before", "window 0", "window 1", "window 4"]
"""Whose memory answers: the session's that was told, another episode's, none, or the own one at an earlier time.

Or the own one with another number of recent messages in the prompt.
"""
WINDOWS = (0, 1, 4, 8)
"""Numbers of recent messages that are compared; the last one is the engine's default."""
PLAIN = 100
"""Prompts that the memory has nothing to do with, at most, of each seed."""
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
    windows: tuple[int, ...] = (0,)
    """How many recent messages stand in the prompt; where there are several, all is told and asked with each."""
    tokens: int = 24
    """Of an answer at most."""
    plain: Literal["talk", "questions"] | None = None
    """Whether a full memory is given what it has nothing to do with: statements and small talk, or questions."""
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


def window_condition(window: int) -> Condition:
    """The condition under which so many recent messages stand in the prompt."""
    found: dict[int, Condition] = {0: "window 0", 1: "window 1", 4: "window 4"}
    return found.get(window, "own")


def _recall(title: str, target: float | None, **mix: object) -> Row:
    return Row(
        (EpisodeMix.model_validate(_EVERY_KIND | mix),), (Figure(title, None if target is None else at_least(target)),)
    )


def _windows(title: str, facts: int) -> Row:
    figures = [Figure(f"{title}, default window ({WINDOWS[-1]})", _AS_WITHOUT)]
    figures += [Figure(f"{title}, window {n}", None, condition=window_condition(n)) for n in WINDOWS[:-1]]
    return Row((EpisodeMix.model_validate(_EVERY_KIND | {"facts": (facts,)}),), tuple(figures), windows=WINDOWS)


def _within(points: float) -> Target:
    return Target(f"≥ before − {points * 100:.0f}", lambda found: found["own"] >= found["before"] - points)


_AS_WITHOUT = Target("≥ window 0 − 3", lambda found: found["own"] >= found["window 0"] - 0.03)
_TWICE = Target("≥ 2 × frozen", lambda found: found["own"] >= 2 * found["frozen"] and found["own"] > 0)
_EVERY_KIND: dict[str, object] = {"dates": 0.15}
_UNSEEN = {"open_share": 1.0, "made_up": 0.5, "dates": 0.0}
_LABEL_MAP = EpisodeMix(kinds={"labels": 1.0}, labels=(LABELS,), examples=(EXAMPLES,))
_FULL = EpisodeMix(facts=(8,), filler=(256,))

ROWS: dict[str, Row] = {
    "facts-1": _recall("1 fact", 0.98, facts=(1,)),
    "facts-4": _recall("4 facts", 0.90, facts=(4,)),
    "facts-8": _recall("8 facts", 0.80, facts=(8,)),
    "window-1": _windows("1 fact", 1),
    "window-4": _windows("4 facts", 4),
    "talk-256": _recall("4 facts, then 256 tokens of other talk", 0.85, facts=(4,), filler=(256,)),
    "talk-1024": _recall("4 facts, then 1,024 tokens of other talk", 0.65, facts=(4,), filler=(1024,)),
    "unseen-words-1": _recall("1 fact, words and made-up names never seen", 0.90, facts=(1,), **_UNSEEN),
    "unseen-words-4": _recall("4 facts, words and made-up names never seen", 0.70, facts=(4,), **_UNSEEN),
    "unseen-attributes": _recall("1 fact, attributes never seen", 0.75, facts=(1,), attributes="unseen"),
    "sentences": _recall("4 facts, two in a sentence or in longer messages", None, paired=0.5, inside=0.5, facts=(4,)),
    "people": _recall("4 facts about several people", None, people=1.0, rivals=0.3, relatives=0.3, facts=(4,)),
    "updated": Row(
        (EpisodeMix(kinds={"updated": 1.0}, facts=(2,), dates=0.15, old_named=0.2),),
        (Figure("2 facts, one updated: new value", at_least(0.90)), Figure("old value", at_most(0.05), "stale")),
    ),
    "untold": Row(
        (EpisodeMix(kinds={"untold": 1.0}, facts=(2,), dates=0.15), EpisodeMix(facts=(2,), dates=0.15)),
        (
            Figure("2 facts, another never told: says so", at_least(0.80), about="untold"),
            Figure("2 facts, one of them asked: wrongly says it was never told", at_most(0.03), "unsure", "told"),
        ),
    ),
    "listed": Row(
        (EpisodeMix(kinds={"listed": 1.0}, facts=(4,), dates=0.15),),
        (Figure('"What do you know about me?" after 4 facts: of them named', at_least(0.70), "named"),),
        tokens=96,
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
        (_FULL,),
        (Figure("perplexity of unrelated text, full memory against none", at_most(0.01)),),
        perplexity=True,
    ),
    "plain-talk": Row(
        (_FULL,),
        (Figure("statements and small talk, full memory: the frozen model's first 12 tokens", at_least(0.80)),),
        tokens=12,
        plain="talk",
    ),
    "plain-questions": Row(
        (_FULL,),
        (Figure("general questions, full memory: the frozen model's answer kept", at_least(0.90)),),
        plain="questions",
    ),
}
"""By name."""
