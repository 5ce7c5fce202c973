"""What an answer says: the value asked for, an old one, or that it does not know."""

import re
from dataclasses import dataclass
from typing import Literal

from deltamem_agents.train.episode import UNKNOWN, Episode, contains

Measure = Literal["right", "stale", "unsure"]

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


def judge(answer: str, episode: Episode) -> Verdict:
    """Reads a free answer to an episode's question."""
    unsure = _UNSURE.search(answer.replace("’", "'")) is not None
    stale = any(contains(answer, value) for value in episode.stale)
    if episode.value == UNKNOWN:
        return Verdict(unsure and not stale, stale, unsure)
    right = all(contains(answer, value) for value in episode.values or (episode.answer,)) and not stale
    return Verdict(right, stale, unsure and not right)
