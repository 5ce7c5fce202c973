"""What a suite holds: conversations that are told part by part, and questions about them."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from deltamem_agents.errors import ConfigError
from deltamem_agents.messages import Message

T = TypeVar("T")
Scores = Mapping[str, float]
"""Measures of one generated answer, each between 0 and 1, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question about a conversation."""

    id: str
    """Unique in its suite."""
    text: str
    """As the user asks it, with whatever the benchmark puts around it."""
    answers: tuple[str, ...]
    """Right answers; likelihoods are those of the first. Empty where the benchmark publishes none."""
    category: str
    """What the benchmark calls its kind."""
    candidates: tuple[str, ...] = ()
    """What the right answer is ranked among, itself included; empty: no ranking."""
    evidence: tuple[int, ...] = ()
    """Positions of the messages that hold the answer, where the benchmark says so."""
    recalls: bool = True
    """Whether the conversation makes the right answer likelier: recovery counts only such questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What is told before the questions."""

    name: str
    """Unique in its suite."""
    parts: tuple[tuple[Message, ...], ...]
    """Messages that are absorbed together: a day, a session, a story."""
    questions: tuple[Question, ...]

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages, in order."""
        return tuple(message for part in self.parts for message in part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A benchmark: what is told, what is asked, and how answers are judged."""

    name: str
    title: str
    """For the report: what this is, and what it isn't."""
    conversations: tuple[Conversation, ...]
    score: Callable[[str, Question], Scores]
    """Judges a generated answer; the first measure is the benchmark's own."""
    answer_tokens: int
    """At most so many are generated."""


def user(text: str) -> Message:
    """What somebody tells: the role that memories absorb."""
    return Message(role="user", content=text)


def limited(suite: Suite, *, conversations: int | None = None, questions: int | None = None, seed: int = 0) -> Suite:
    """A suite of fewer conversations with fewer questions each: a seeded choice, in the order they had.

    Args:
        suite: the whole suite.
        conversations: at most so many; None: all.
        questions: at most so many of each conversation; None: all.
        seed: draws them.

    Raises:
        ConfigError: a limit is not positive.
    """
    for name, limit in (("conversations", conversations), ("questions", questions)):
        if limit is not None and limit < 1:
            raise ConfigError(f"{name} is {limit}, expected 1 or more, or nothing for all of them")
    chosen = [
        replace(talk, questions=tuple(_chosen(talk.questions, questions, f"{suite.name} {seed} {talk.name}")))
        for talk in _chosen(suite.conversations, conversations, f"{suite.name} {seed}")
    ]
    return replace(suite, conversations=tuple(chosen))


def _chosen(things: Sequence[T], count: int | None, key: str) -> list[T]:
    if count is None or count >= len(things):
        return list(things)
    return [things[i] for i in sorted(random.Random(key).sample(range(len(things)), count))]
