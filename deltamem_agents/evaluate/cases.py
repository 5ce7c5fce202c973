"""Drawing what is told and asked, and whose memory stands in for whose."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltamem_agents.errors import TrainingError
from deltamem_agents.messages import Message
from deltamem_agents.train.attributes import ATTRIBUTES
from deltamem_agents.train.convert import intent_texts
from deltamem_agents.train.episode import UNKNOWN, Episode, contains
from deltamem_agents.train.facts import GENERATED, Fact, ValueMix, Values
from deltamem_agents.train.labels import LabelTexts

TOLD, NEVER_TOLD = 4, 2


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question on the way."""

    question: str
    reply: str | None = None
    """The assistant's reply, put in its mouth; None: it replies itself."""


@dataclass(frozen=True, slots=True)
class Case:
    """An episode, and what is asked between its telling and its question."""

    episode: Episode
    later: tuple[Exchange, ...] = ()


def label_texts(data: Path | None) -> LabelTexts:
    """Texts for label maps; None: the built-in ones.

    Args:
        data: a folder with `train/banking77` or `banking77` in it, or one of intent files itself.

    Raises:
        TrainingError: no intents are there, or too few to hold some back.
    """
    if data is None:
        return LabelTexts()
    inside = [folder for folder in (data / "train" / "banking77", data / "banking77") if folder.is_dir()]
    folder = inside[0] if inside else data
    texts = LabelTexts(intent_texts(folder))
    if len(texts.kinds["test"]) < 2:
        raise TrainingError(
            f"{folder} holds {len(texts.texts)} kinds of texts, expected 8 or more: every fourth is for testing"
        )
    return texts


def live_case(values: Values, rng: random.Random) -> Case:
    """Four facts, then ten questions about them and about what was never told; two of the answers are given, and wrong.

    One of the wrong answers is to the question that counts: its value is the episode's stale one.
    """
    plain = [a for a in ATTRIBUTES if a.values not in GENERATED]
    facts: list[Fact] = []
    for attribute in rng.sample(plain, TOLD + NEVER_TOLD):
        known = [fact.value for fact in facts]
        said = [attribute, *(fact.attribute for fact in facts)]
        value = values.other(attribute.values, known, rng, split="test", mix=ValueMix(), said=said)
        facts.append(Fact(attribute, value))
    told = facts[:TOLD]
    asked, other = rng.sample(told, 2)
    known = [fact.value for fact in facts]

    def question(fact: Fact) -> str:
        return rng.choice(fact.attribute.test.questions)

    wrong = []
    for fact in (asked, other):
        value = values.other(fact.attribute.values, known, rng, split="test", mix=ValueMix())
        wrong.append(value)
        known.append(value)
    later = [Exchange(question(fact)) for fact in (*facts, *rng.sample(told, 2))]
    later += [
        Exchange(question(fact), fact.attribute.test.answer.format(value))
        for fact, value in zip((asked, other), wrong, strict=True)
    ]
    rng.shuffle(later)
    statements = [fact.say(rng.choice(fact.attribute.test.statements)) for fact in told]
    episode = Episode(
        earlier=tuple(Message(role="user", content=text) for text in statements),
        question=question(asked),
        answer=asked.say(asked.attribute.test.answer),
        values=(asked.value,),
        stale=(wrong[0],),
        tags=("told", f"facts:{TOLD}", asked.attribute.name),
    )
    return Case(episode, tuple(later))


def partners(episodes: Sequence[Episode]) -> list[int | None]:
    """For each episode the position of another one whose memory cannot know the answer; None where there is none."""
    count = len(episodes)
    return [
        next((j for k in range(1, count) if _foreign(episodes[j := (i + k) % count], episode)), None)
        for i, episode in enumerate(episodes)
    ]


def _foreign(other: Episode, episode: Episode) -> bool:
    """Whether another episode's memory helps in nothing: it has another value, and was never told this one's.

    The numbers of label maps are few: there only the value itself must differ. What was never told has no value.
    """
    if episode.value == UNKNOWN:
        return True
    if other.value.lower() == episode.value.lower():
        return False
    values = episode.values or (episode.value,)
    return "labels" in episode.tags or not any(contains(m.content, v) for m in other.earlier for v in values)
