"""Drawing episodes: facts told, replaced, denied or never told, about the speaker or others, among other talk."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deltamem_agents.errors import ConfigError
from deltamem_agents.messages import Message
from deltamem_agents.train.agents import tool_prompt, tool_turn
from deltamem_agents.train.attributes import ATTRIBUTES, FAMILIES, HELD_OUT_ATTRIBUTES, Attribute, Split, words_of
from deltamem_agents.train.episode import UNKNOWN, Episode, Exchange, contains
from deltamem_agents.train.facts import GENERATED, VALUES, Fact, ValueMix, Values
from deltamem_agents.train.labels import ANSWER, LabelTexts
from deltamem_agents.train.speech import LISTED, NOTHING, in_one, listing, update
from deltamem_agents.train.talk import ACKNOWLEDGEMENTS, SYSTEM_PROMPTS, Talk, small_talk

__all__ = ["Episode", "EpisodeMix", "Kind", "draw_episode"]

Kind = Literal["told", "updated", "negated", "untold", "listed", "labels"]

class EpisodeMix(BaseModel):
    """How episodes are drawn. Shares are probabilities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: tuple[int, ...] = Field(default=(1,), min_length=1)
    """Numbers of facts, drawn uniformly."""
    questions: int = Field(default=1, ge=1)
    """At most this many questions to one memory, each of another fact; labels are asked for once."""
    kinds: Mapping[Kind, float] = {"told": 1.0}
    """Weights of what the question is about: a fact told, updated, negated, never told, all facts, or a label map."""
    open_share: float = Field(default=0.0, ge=0, le=1)
    """Share of values that come from the open vocabulary, not from the closed lists."""
    made_up: float = Field(default=0.2, ge=0, le=1)
    """Share of open values that are made-up names."""
    capitals: float = Field(default=0.8, ge=0, le=1)
    """Share of open values that are capitalised where names are usual."""
    dates: float = Field(default=0.0, ge=0, le=1)
    """Share of facts whose value is a date, a time, a number, a code, or one of a few, such as a weekday."""
    names: float = Field(default=0.0, ge=0, le=1)
    """Share of facts, on top of chance, about what somebody is called: the speaker, a dog, a sister, a boss."""
    alike: float = Field(default=0.0, ge=0, le=1)
    """Share of episodes whose facts are easily taken for one another: all names, or all places, dates, colours."""
    people: float = Field(default=0.0, ge=0, le=1)
    """Share of facts that are about another person."""
    relatives: float = Field(default=0.0, ge=0, le=1)
    """Share of those people who are "my sister" or "my boss", not a name."""
    rivals: float = Field(default=0.0, ge=0, le=1)
    """Share of facts after the first that say of another person what was just said of somebody."""
    paired: float = Field(default=0.0, ge=0, le=1)
    """Share of facts that are told in one sentence with the one before."""
    inside: float = Field(default=0.0, ge=0, le=1)
    """Share of messages that tell something with a sentence of other talk before it or behind it."""
    old_named: float = Field(default=0.0, ge=0, le=1)
    """Share of updates that name the old value too."""
    again: float = Field(default=0.0, ge=0, le=1)
    """Share of updated facts that are updated twice."""
    attributes: Literal["known", "basic", "unseen"] = "known"
    """Which attributes facts are about: those of training, the two dozen commonest of them, or never in training."""
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
    if kind == "listed":
        return draft.listing()
    return draft.question(kind)


_TALK, _LABELS = Talk(), LabelTexts()


@dataclass(slots=True)
class _Turn:
    """Messages that are said one after the other, and what they tell."""

    messages: tuple[Message, ...]
    talk: bool = False
    """Whether they tell nothing."""
    tells: list[Fact] = field(default_factory=list)


class _Draft:
    """An episode in the making: turns so far."""

    def __init__(self, mix: EpisodeMix, values: Values, rng: random.Random, split: Split, talk: Talk) -> None:
        self.mix, self.values, self.rng, self.split, self.talk = mix, values, rng, split, talk
        self.said: list[_Turn] = []

    def label_map(self, texts: LabelTexts) -> Episode:
        rng = self.rng
        count, examples = rng.choice(self.mix.labels), rng.choice(self.mix.examples)
        drawn = texts.draw(rng, split=self.split, labels=count, examples=examples)
        for text in drawn.shown:
            self._say(text)
        answer = ANSWER.format(n=drawn.label)
        return self._episode(drawn.question, answer, (drawn.label,), (), "labels", f"labels:{count}")

    def listing(self) -> Episode:
        """Facts about the speaker, and a question for all of them."""
        mix, rng = self.mix, self.rng
        idle = rng.random() < mix.idle
        facts = [] if idle else self._facts(rng.choice(mix.facts), about=False)
        if idle:
            self._say(small_talk(rng, self.split), talk=True)
        self._tell(facts)
        exchanges = self._exchanges(facts, None) if mix.questions > 1 else []
        self._mix_in_talk(facts)
        question, tags = rng.choice(LISTED[self.split]), ("listed", f"facts:{len(facts)}")
        if idle:
            return self._episode(question, NOTHING, (UNKNOWN,), (), *tags)
        values = tuple(fact.value for fact in facts)
        return self._episode(question, listing(facts, self.split), values, (), *tags, exchanges=exchanges)

    def question(self, kind: Kind) -> Episode:
        mix, rng = self.mix, self.rng
        unknown = kind == "untold"
        idle = unknown and rng.random() < mix.idle
        facts = self._facts(1 if idle else rng.choice(mix.facts) + unknown)
        asked = facts.pop(rng.randrange(len(facts))) if unknown else rng.choice(facts)
        self._tell(facts, alone=asked if kind == "negated" else None)
        if idle:
            self._say(small_talk(rng, self.split), talk=True)
        denials = asked.phrasings(self.split).negations
        if kind == "negated" and not denials:
            kind = "told"
        stale: tuple[str, ...] = ()
        if kind == "updated":
            for _ in range(2 if mix.again and rng.random() < mix.again else 1):
                stale, old = (*stale, asked.value), asked
                asked = Fact(asked.attribute, self._other(asked, facts, *stale), asked.who)
                text = update(asked, old.value, rng, self.split, old_named=mix.old_named)
                self._say(text, at=rng.randint(self._position(old) + 1, len(self.said)), tells=[asked])
        elif kind == "negated":
            denied = Fact(asked.attribute, self._other(asked, facts), asked.who)
            stale, unknown = (denied.value,), rng.random() < 0.3
            if unknown:  # only what it is not was said
                self.said.pop(self._position(asked))
                facts.remove(asked)
            self._say(denied.say(rng.choice(denials)), at=rng.randint(0, len(self.said)))
        exchanges = self._exchanges(facts, asked)
        self._mix_in_talk([*facts, asked])
        phrasings = asked.phrasings(self.split)
        answer = phrasings.unknown if unknown else phrasings.answer
        right = UNKNOWN if unknown else asked.value
        tags = (kind, f"facts:{len(facts)}", asked.attribute.name, *(["other person"] if asked.who else []))
        question, reply = asked.say(rng.choice(phrasings.questions)), asked.reply(answer)
        return self._episode(question, reply, (right,), stale, *tags, exchanges=exchanges)

    def _other(self, fact: Fact, facts: Sequence[Fact], *known: str) -> str:
        """Another value for a fact."""
        return self.values.other(
            fact.attribute.values,
            [*known, *(f.value for f in facts), *(f.who for f in facts if f.who)],
            self.rng,
            split=self.split,
            mix=self.mix._values,
            said=[f.attribute for f in (fact, *facts)],
        )

    def _exchanges(self, facts: list[Fact], asked: Fact | None) -> list[Exchange]:
        """Questions of other facts with their answers; as many of them as in all were never told.

        None answers the question `asked`, or, where that is for everything, tells all of it.
        """
        rng, weights = self.rng, self.mix.kinds
        others = [f for f in facts if asked is None or f.about != asked.about]
        taken = {f.about for f in (*facts, *([asked] if asked else []))}
        found = []
        for fact in rng.sample(others, min(len(others), self.mix.questions - 1)):
            answer = fact.phrasings(self.split).answer
            if asked is None or rng.random() < weights.get("untold", 0.0) / sum(weights.values()):
                fact = self._facts(1, besides=[*facts, *([asked] if asked else [])])[0]
                if fact.about in taken:
                    continue
                answer = fact.phrasings(self.split).unknown
                taken.add(fact.about)
            question = rng.choice(fact.phrasings(self.split).questions)
            found.append(Exchange(question=fact.say(question), answer=fact.reply(answer)))
        return found

    def _facts(self, count: int, *, about: bool = True, besides: Sequence[Fact] = ()) -> list[Fact]:
        """Facts of different attributes or people, with different values.

        Args:
            count: how many.
            about: whether some may be of other people.
            besides: more facts of the episode.
        """
        mix, rng = self.mix, self.rng
        if count > len(_POOLS[mix.attributes]):
            raise ConfigError(f"{count} facts are more than there are {mix.attributes} attributes: ask for fewer")
        facts: list[Fact] = []
        named = frozenset[str]().union(*(words_of(f.value) for f in besides))
        people = rng.sample([name for name in VALUES["person"] if name.lower() not in named], 3)
        others = [rng.choice(_RELATIVES) if mix.relatives and rng.random() < mix.relatives else p for p in people]
        alike = bool(mix.alike) and mix.attributes == "known" and rng.random() < mix.alike
        while len(facts) < count:
            attribute, who = self._subject(facts, others if about else [])
            if alike and facts and len(family := FAMILIES[facts[0].attribute.values]) >= 2 * count:
                common = [a for a in family if a.area == "basics"]
                common = common[:1] if rng.random() < 0.3 else common  # one's own name is every other's rival
                attribute, who = rng.choice(common if common and rng.random() < 0.6 else family), None
            known = [*besides, *facts]
            if (attribute.name, who) in {f.about for f in facts}:
                continue
            if any(words_of(f.value) <= attribute.words for f in known):  # its question would show another's value
                continue
            value = self.values.other(
                attribute.values,
                [*(f.value for f in known), *people, *(f.who for f in besides if f.who)],
                rng,
                split=self.split,
                mix=mix._values,
                said=[attribute, *(f.attribute for f in known)],
            )
            facts.append(Fact(attribute, value, who))
        return facts

    def _subject(self, facts: Sequence[Fact], people: Sequence[str]) -> tuple[Attribute, str | None]:
        """What the next fact is about, and of whom; None: of the speaker."""
        mix, rng = self.mix, self.rng
        if people and mix.rivals and facts and facts[-1].attribute.train_about and rng.random() < mix.rivals:
            return facts[-1].attribute, rng.choice([*people, None])
        dated = rng.random() < mix.dates
        pool = _DATED if dated and mix.attributes == "known" else _POOLS[mix.attributes]
        if mix.names and pool is _PLAIN and len(facts) < len(_NAMES) and rng.random() < mix.names:
            pool = _NAMES
        about = [a for a in pool if a.train_about] if rng.random() < mix.people and people else []
        return rng.choice(about or pool), rng.choice(people) if about else None

    def _tell(self, facts: Sequence[Fact], *, alone: Fact | None = None) -> None:
        """Says the facts, some of them two in a sentence; `alone` is not one of those."""
        mix, rng = self.mix, self.rng
        texts: list[tuple[str, list[Fact]]] = []
        for fact in facts:
            before = texts[-1][1] if texts else []
            pair = mix.paired and len(before) == 1 and alone not in (fact, *before) and rng.random() < mix.paired
            text = fact.statement(rng, self.split, opening=not pair)
            if pair:
                texts[-1] = in_one(texts[-1][0], fact, text, rng, self.split), [*before, fact]
            else:
                texts.append((text, [fact]))
        for text, tells in texts:
            if mix.inside and rng.random() < mix.inside:
                parts = [text]
                parts.insert(rng.randrange(2), self.talk.sentence(rng, self.split))
                text = " ".join(parts)
            self._say(text, tells=tells)

    def _say(
        self,
        text: str,
        *,
        at: int | None = None,
        reply: str | None = None,
        talk: bool = False,
        tells: Sequence[Fact] = (),
    ) -> None:
        reply = reply or self.rng.choice(ACKNOWLEDGEMENTS)
        turn = (Message(role="user", content=text), Message(role="assistant", content=reply))
        self.said.insert(len(self.said) if at is None else at, _Turn(turn, talk, list(tells)))

    def _position(self, fact: Fact) -> int:
        return next(i for i, turn in enumerate(self.said) if fact in turn.tells)

    def _mix_in_talk(self, facts: list[Fact]) -> None:
        mix, rng = self.mix, self.rng
        for _ in range(rng.randint(0, mix.other_talk)):
            if rng.random() < mix.tools:
                self.said.insert(rng.randint(0, len(self.said)), _Turn(tool_turn(rng, self.split), talk=True))
                continue
            text, reply = small_talk(rng, self.split), None
            if facts and rng.random() < 0.5:
                text, reply = self._earlier_question(rng.choice(facts), facts)
            self._say(text, at=rng.randint(0, len(self.said)), reply=reply, talk=True)
        filler = self.talk.messages(rng.choice(mix.filler), rng, self.split)
        start = len(self.said) if self.split == "test" or rng.random() < 0.5 else rng.randint(0, len(self.said))
        for offset, text in enumerate(filler):
            self._say(text, at=start + offset, talk=True)

    def _earlier_question(self, fact: Fact, facts: Sequence[Fact]) -> tuple[str, str]:
        """A question asked before, and the assistant's answer to it, which may be wrong."""
        phrasings, rng = fact.phrasings(self.split), self.rng
        question = fact.say(rng.choice(phrasings.questions))
        if rng.random() < self.mix.wrong_replies:
            fact = Fact(fact.attribute, self._other(fact, facts), fact.who)
        elif not any(fact in turn.tells for turn in self.said):
            return question, fact.reply(phrasings.unknown)
        return question, fact.reply(phrasings.answer)

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
        facts = [fact for turn in self.said for fact in turn.tells]
        window = self._system_prompt(questions=len(exchanges) + 1)
        for turn in self.said:
            heard = [m for m in turn.messages if self.mix.replies or m.role != "assistant"]
            talk += range(len(earlier), len(earlier) + len(heard)) if turn.talk else ()
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
            told=tuple(tuple(f.value for f in facts if f.about == a) for a in dict.fromkeys(f.about for f in facts)),
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
_POOLS: dict[str, tuple[Attribute, ...]] = {
    "known": _PLAIN,
    "basic": tuple(a for a in _PLAIN if a.area == "basics"),
    "unseen": HELD_OUT_ATTRIBUTES,
}
_NAMES: tuple[Attribute, ...] = tuple(a for a in _PLAIN if a.values in ("person", "pet", "surname"))
_RELATIVES = (
    "my sister", "my friend", "my boss", "my mother", "my father", "my son", "my daughter", "my wife",
    "my husband", "my colleague", "my flatmate", "my grandfather", "my cousin",
)  # fmt: skip
