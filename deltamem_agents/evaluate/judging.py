"""What an answer says: the value asked for, an old one, or that it does not know."""

import re
from dataclasses import dataclass
from typing import Literal

from deltamem_agents.train.episode import UNKNOWN, Episode, contains

Measure = Literal["right", "stale", "unsure", "named"]

_UNSURE = re.compile(
    r"\b(?:do not|don't|does not|doesn't) (?:\w+ )?(?:know|remember)\b|\bnot sure\b|\bno idea\b"
    r"|\b(?:haven't|have not|never|not) (?:yet )?(?:told|said|mentioned)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What stands in an answer."""

    right: bool
    """All values that were asked for and no stale one; of what was never told: that it is not known."""
    stale: bool
    """A value that was replaced or denied, or that only a wrong answer named."""
    unsure: bool
    """That it is not known, and no right value."""
    named: float = 0.0
    """Which share of the values that were asked for."""


def judge(answer: str, episode: Episode) -> Verdict:
    """Reads a free answer to an episode's question."""
    unsure = _UNSURE.search(answer.replace("’", "'")) is not None
    stale = any(contains(answer, value) for value in episode.stale)
    if episode.value == UNKNOWN:
        return Verdict(unsure and not stale, stale, unsure)
    named = [contains(answer, value) for value in episode.values or (episode.answer,)]
    right = all(named) and not stale
    return Verdict(right, stale, unsure and not right, sum(named) / len(named))


_COMMON = frozenset(
    "a an and are as at be by can do does for from has have i in is it its me my of on or that the there this to was "
    "were what which who will with you your".split()
)


def keeps(answer: str, plain: str, question: str) -> bool:
    """Whether an answer says what the frozen model's does.

    What the frozen model's first sentence says beside the question's own words and common ones must all stand in the
    answer's first sentence; where it says nothing else ("Yes, it is."), both sentences must be of the same words.
    """
    said, meant = _words(_first_sentence(answer)), _words(_first_sentence(plain))
    tells = [word for word in meant if word not in _COMMON and word not in _words(question)]
    return set(tells) <= set(said) if tells else said == meant


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s|\n", text.strip(), maxsplit=1)[0]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
