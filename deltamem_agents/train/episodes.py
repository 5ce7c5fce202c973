"""Drawing episodes: facts told, replaced, denied or never told, about the speaker or others, among other talk."""

import random
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deltamem_agents.errors import ConfigError
from deltamem_agents.messages import Message
from deltamem_agents.train.agents import tool_prompt, tool_turn
from deltamem_agents.train.attributes import ATTRIBUTES, HELD_OUT_ATTRIBUTES, Attribute, Split
from deltamem_agents.train.episode import UNKNOWN, Episode, Exchange, contains
from deltamem_agents.train.facts import GENERATED, VALUES, Fact, ValueMix, Values
from deltamem_agents.train.labels import ANSWER, LabelTexts
from deltamem_agents.train.talk import ACKNOWLEDGEMENTS, SMALL_TALK, SYSTEM_PROMPTS, Talk

__all__ = ["Episode", "EpisodeMix", "Kind", "draw_episode"]

Kind = Literal["told", "updated", "negated", "untold", "labels"]

CORRECTIONS: dict[Split, tuple[str, ...]] = {
    "train": ("Actually, {}", "Correction: {}", "That has changed: {}", "Update: {}", "Not any more: {}",
              "Sorry, I was wrong, {}", "Things are different now: {}"),
    "test": ("I have news: {}", "Let me correct that: {}"),
}  # fmt: skip

class EpisodeMix(BaseModel):
    """How episodes are drawn. Shares are probabilities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: tuple[int, ...] = Field(default=(1,), min_length=1)
    """Numbers of facts, drawn uniformly."""
    questions: int = Field(default=1, ge=1)
    """At most this many questions to one memory, each of another fact; labels are asked for once."""
    kinds: Mapping[Kind, float] = {"told": 1.0}
    """Weights of what the question is about: a fact told, updated, negated, never told, or a label map."""
    open_share: float = Field(default=0.0, ge=0, le=1)
    """Share of values that come from the open vocabulary, not from the closed lists."""
    made_up: float = Field(default=0.2, ge=0, le=1)
    """Share of open values that are made-up names."""
    capitals: float = Field(default=0.8, ge=0, le=1)
    """Share of open values that are capitalised where names are usual."""
    dates: float = Field(default=0.0, ge=0, le=1)
    """Share of facts whose value is a date or a number."""
    names: float = Field(default=0.0, ge=0, le=1)
    """Share of facts, on top of chance, about what somebody is called: the speaker, a dog, a sister, a boss. One is
    easily taken for another."""
    people: float = Field(default=0.0, ge=0, le=1)
    """Share of facts that are about another person."""
    attributes: Literal["known", "unseen"] = "known"
    """Which attributes facts are about: those of training, or those that never occur in it."""
    other_talk: int = Field(default=0, ge=0)
    """At most this many messages of small talk and earlier questions in between."""
    tools: float = Field(default=0.0, ge=0, le=1)
    """Share of those that are turns with a tool's result, and of system prompts that describe tools. In training only
    where at least three questions share the prompt: it costs as much as ten questions."""
    idle: float = Field(default=0.0, ge=0, le=1)
    """Share of untold episodes in which nothing was told at all, only talk."""
    filler: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Tokens of other talk in a row, drawn uniformly; before or between the facts or, always at test, behind them."""
    system: float = Field(default=0.0, ge=0, le=1)
    """Share of episodes whose question comes under a system prompt of its own, not the template's."""
    replies: bool = False
    """Whether the assistant has replied to each message."""
    wrong_replies: float = Field(default=0.2, ge=0, le=1)
    """Share of wrong answers among the replies to earlier questions."""
    labels: tuple[int, ...] = Field(default=(2, 3, 4, 8), min_length=1)
    """Numbers of labels in a label map, drawn uniformly."""
    examples: tuple[int, ...] = Field(default=(1, 2, 4), min_length=1)
    """Numbers of examples for each label, drawn uniformly."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.kinds or min(self.kinds.values()) < 0 or not any(self.kinds.values()):
            raise ValueError(f"kinds needs weights of which none is negative and one is not 0, got {dict(self.kinds)}")
        return self

    @property
    def _values(self) -> ValueMix:
        return ValueMix(self.open_share, self.made_up, self.capitals)


def draw_episode(
    mix: EpisodeMix,
    values: Values,
    rng: random.Random,
    *,
    split: Split,
    talk: Talk | None = None,
    labels: LabelTexts | None = None,
) -> Episode:
    """One episode with the phrasings and values of `split`.

    Args:
        mix: how it is drawn.
        values: where values come from.
        rng: decides everything; the same state gives the same episode.
        split: "train" or "test".
        talk: where other talk comes from; None: the built-in sentences.
        labels: where texts of label maps come from; None: the built-in ones.

    Raises:
        ConfigError: unseen attributes are asked for in training.
    """
    if mix.attributes == "unseen" and split == "train":
        raise ConfigError("attributes: unseen is for testing, training must never see them: leave it out of the stage")
    kind = rng.choices(list(mix.kinds), list(mix.kinds.values()))[0]
    draft = _Draft(mix, values, rng, split, talk or _TALK)
    if kind == "labels":
        return draft.label_map(labels or _LABELS)
    return draft.question(kind)


_TALK, _LABELS = Talk(), LabelTexts()


class _Draft:
    """An episode in the making: turns so far, each the messages it consists of and whether it is only talk."""

    def __init__(self, mix: EpisodeMix, values: Values, rng: random.Random, split: Split, talk: Talk) -> None:
        self.mix, self.values, self.rng, self.split, self.talk = mix, values, rng, split, talk
        self.said: list[tuple[tuple[Message, ...], bool]] = []

    def label_map(self, texts: LabelTexts) -> Episode:
        rng = self.rng
        count, examples = rng.choice(self.mix.labels), rng.choice(self.mix.examples)
        drawn = texts.draw(rng, split=self.split, labels=count, examples=examples)
        for text in drawn.shown:
            self._say(text)
        answer = ANSWER.format(n=drawn.label)
        return self._episode(drawn.question, answer, (drawn.label,), (), "labels", f"labels:{count}")

    def question(self, kind: Kind) -> Episode:
        mix, rng = self.mix, self.rng
        unknown = kind == "untold"
        idle = unknown and rng.random() < mix.idle
        facts = self._facts(1 if idle else rng.choice(mix.facts) + unknown)
        asked = facts.pop(rng.randrange(len(facts))) if unknown else rng.choice(facts)
        for fact in facts:
            self._say(fact.say(rng.choice(fact.phrasings(self.split).statements)))
        if idle:
            self._say(rng.choice(SMALL_TALK), talk=True)
        denials = asked.phrasings(self.split).negations
        if kind == "negated" and not denials:
            kind = "told"
        stale: tuple[str, ...] = ()
        if kind in ("updated", "negated"):
            other = self.values.other(
                asked.attribute.values, [f.value for f in facts], rng, split=self.split, mix=mix._values
            )
            if kind == "updated":
                stale, asked = (asked.value,), Fact(asked.attribute, other, asked.who)
                self._say(self._update(asked), at=rng.randint(self._position(stale[0]) + 1, len(self.said)))
            else:
                denied = Fact(asked.attribute, other, asked.who)
                stale, unknown = (other,), rng.random() < 0.3
                if unknown:  # only what it is not was said
                    self.said.pop(self._position(asked.value))
                    facts.remove(asked)
                self._say(denied.say(rng.choice(denials)), at=rng.randint(0, len(self.said)))
        exchanges = self._exchanges(facts, asked)
        self._mix_in_talk([*facts, asked], asked)
        phrasings = asked.phrasings(self.split)
        answer = phrasings.unknown if unknown else phrasings.answer
        right = UNKNOWN if unknown else asked.value
        tags = (kind, f"facts:{len(facts)}", asked.attribute.name, *(["other person"] if asked.who else []))
        question, reply = asked.say(rng.choice(phrasings.questions)), asked.say(answer)
        return self._episode(question, reply, (right,), stale, *tags, exchanges=exchanges)

    def _exchanges(self, facts: list[Fact], asked: Fact) -> list[Exchange]:
        """Questions of other facts with their answers; as many of them as in all were never told."""
        rng, weights = self.rng, self.mix.kinds
        others = [f for f in facts if (f.attribute.name, f.who) != (asked.attribute.name, asked.who)]
        taken = {(f.attribute.name, f.who) for f in (*facts, asked)}
        found = []
        for fact in rng.sample(others, min(len(others), self.mix.questions - 1)):
            answer = fact.phrasings(self.split).answer
            if rng.random() < weights.get("untold", 0.0) / sum(weights.values()):
                free = [f for f in self._facts(1) if (f.attribute.name, f.who) not in taken]
                if not free:
                    continue
                fact, answer = free[0], free[0].phrasings(self.split).unknown
                taken.add((fact.attribute.name, fact.who))
            question = rng.choice(fact.phrasings(self.split).questions)
            found.append(Exchange(question=fact.say(question), answer=fact.say(answer)))
        return found

    def _facts(self, count: int) -> list[Fact]:
        """Facts of different attributes or people, with different values."""
        mix, rng = self.mix, self.rng
        if count > len(HELD_OUT_ATTRIBUTES if mix.attributes == "unseen" else _PLAIN):
            raise ConfigError(f"{count} facts are more than there are {mix.attributes} attributes: ask for fewer")
        facts: list[Fact] = []
        people = rng.sample(VALUES["person"], 3)
        while len(facts) < count:
            dated = rng.random() < mix.dates
            pool = HELD_OUT_ATTRIBUTES if mix.attributes == "unseen" else _DATED if dated else _PLAIN
            if mix.names and pool is _PLAIN and len(facts) < len(_NAMES) and rng.random() < mix.names:
                pool = _NAMES
            about = [a for a in pool if a.train_about] if rng.random() < mix.people else []
            attribute, who = rng.choice(about or pool), rng.choice(people) if about else None
            taken = {(f.attribute.name, f.who) for f in facts}
            if (attribute.name, who) in taken:
                continue
            known = [*(f.value for f in facts), *people]
            value = self.values.other(attribute.values, known, rng, split=self.split, mix=mix._values)
            facts.append(Fact(attribute, value, who))
        return facts

    def _update(self, fact: Fact) -> str:
        phrasings, rng = fact.phrasings(self.split), self.rng
        if phrasings.updates and rng.random() < 0.6:
            return fact.say(rng.choice(phrasings.updates))
        text = fact.say(rng.choice(phrasings.statements))
        keep = text.startswith(("I ", "I'", fact.value, *([fact.who] if fact.who else [])))
        return rng.choice(CORRECTIONS[self.split]).format(text if keep else text[0].lower() + text[1:])

    def _say(self, text: str, *, at: int | None = None, reply: str | None = None, talk: bool = False) -> None:
        reply = reply or self.rng.choice(ACKNOWLEDGEMENTS)
        turn = (Message(role="user", content=text), Message(role="assistant", content=reply))
        self.said.insert(len(self.said) if at is None else at, (turn, talk))

    def _position(self, value: str) -> int:
        return next(i for i, (turn, _) in enumerate(self.said) if contains(turn[0].content, value))

    def _mix_in_talk(self, facts: list[Fact], asked: Fact) -> None:
        mix, rng = self.mix, self.rng
        for _ in range(rng.randint(0, mix.other_talk)):
            if rng.random() < mix.tools:
                self.said.insert(rng.randint(0, len(self.said)), (tool_turn(rng, self.split), True))
                continue
            text, reply = rng.choice(SMALL_TALK), None
            if rng.random() < 0.5:
                fact = rng.choice(facts)
                text, reply = self._earlier_question(fact)
            self._say(text, at=rng.randint(0, len(self.said)), reply=reply, talk=True)
        filler = self.talk.messages(rng.choice(mix.filler), rng)
        start = len(self.said) if self.split == "test" or rng.random() < 0.5 else rng.randint(0, len(self.said))
        for offset, text in enumerate(filler):
            self._say(text, at=start + offset, talk=True)

    def _earlier_question(self, fact: Fact) -> tuple[str, str]:
        """A question asked before, and the assistant's answer to it, which may be wrong."""
        phrasings, rng = fact.phrasings(self.split), self.rng
        value = fact.value
        if rng.random() < self.mix.wrong_replies:
            value = self.values.other(fact.attribute.values, [value], rng, split=self.split, mix=self.mix._values)
        elif not any(contains(turn[0].content, value) for turn, _ in self.said):
            return fact.say(rng.choice(phrasings.questions)), fact.say(phrasings.unknown)
        return fact.say(rng.choice(phrasings.questions)), phrasings.answer.format(value, who=fact.who)

    def _episode(
        self,
        question: str,
        answer: str,
        values: tuple[str, ...],
        stale: tuple[str, ...],
        *tags: str,
        exchanges: Sequence[Exchange] = (),
    ) -> Episode:
        earlier: list[Message] = []
        talk: list[int] = []
        window = self._system_prompt(questions=len(exchanges) + 1)
        for turn, idle in self.said:
            heard = [m for m in turn if self.mix.replies or m.role != "assistant"]
            talk += range(len(earlier), len(earlier) + len(heard)) if idle else ()
            earlier += heard
        return Episode(
            earlier=tuple(earlier),
            window=tuple(m for m in window if not any(contains(m.content, v) for v in values)),
            exchanges=tuple(exchanges),
            question=question,
            answer=answer,
            values=values,
            stale=stale,
            talk=tuple(talk),
            tags=tags,
        )

    def _system_prompt(self, *, questions: int) -> tuple[Message, ...]:
        mix, rng = self.mix, self.rng
        if not mix.system or rng.random() >= mix.system:
            return ()
        text = rng.choice(SYSTEM_PROMPTS[self.split])
        if mix.tools and (questions > 2 or self.split == "test") and rng.random() < mix.tools:
            text = f"{text}\n\n{tool_prompt(rng, self.split)}"
        return (Message(role="system", content=text),)


_DATED: tuple[Attribute, ...] = tuple(a for a in ATTRIBUTES if a.values in GENERATED)
_PLAIN: tuple[Attribute, ...] = tuple(a for a in ATTRIBUTES if a.values not in GENERATED)
_NAMES: tuple[Attribute, ...] = tuple(a for a in _PLAIN if a.values in ("person", "pet"))
