"""Episodes: what was said earlier, and a question whose answer only the memory can know."""

import random
from dataclasses import dataclass

from deltamem_agents.messages import Message
from deltamem_agents.train.facts import ACKNOWLEDGEMENTS, SMALL_TALK, Fact, Values


@dataclass(frozen=True, slots=True)
class Episode:
    """Earlier messages, then a question about one of the facts in them."""

    facts: tuple[Fact, ...]
    """What was told, in order."""
    earlier: tuple[Message, ...]
    """The messages that told it, other talk and the assistant's replies among them."""
    question: str
    answer: str
    value: str
    """What a right answer contains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeMix:
    """How episodes are drawn."""

    facts: tuple[int, ...]
    """Numbers of facts, drawn uniformly."""
    open_share: float
    """Share of values that come from the open vocabulary, not from the closed lists."""
    other_talk: int = 0
    """At most this many messages of small talk and earlier questions in between."""
    replies: bool = False
    """Whether the assistant has replied to each message."""


def draw_episode(mix: EpisodeMix, values: Values, rng: random.Random, *, split: str) -> Episode:
    """One episode with the phrasings and values of `split` ("train" or "test")."""
    facts = values.facts(rng.choice(mix.facts), rng, split=split, open_share=mix.open_share)
    said = [rng.choice(f.attribute.phrasings(split)[0]).format(f.value) for f in facts]
    asked = rng.choice(facts)
    for _ in range(rng.randint(0, mix.other_talk)):
        earlier_question = rng.choice(rng.choice(facts).attribute.phrasings(split)[1])
        said.insert(rng.randint(0, len(said)), rng.choice((rng.choice(SMALL_TALK), earlier_question)))
    earlier: list[Message] = []
    for text in said:
        earlier.append(Message(role="user", content=text))
        if mix.replies:
            earlier.append(Message(role="assistant", content=rng.choice(ACKNOWLEDGEMENTS)))
    question = rng.choice(asked.attribute.phrasings(split)[1])
    return Episode(tuple(facts), tuple(earlier), question, asked.attribute.answer.format(asked.value), asked.value)
