"""Facts told at the beginning of a conversation and asked for at its end, and what is answered."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.messages import MessageLike
from deltamem_agents.train import ATTRIBUTES, Values, contains
from deltamem_agents.train.facts import GENERATED, Fact, ValueMix

ANSWER_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Told:
    """A fact, in phrasings that training never saw."""

    statement: str
    question: str
    value: str
    another: str
    """The same statement with somebody else's value."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question asked at the end, and its free greedy answer."""

    condition: str
    """What the model had to answer from."""
    turn: int
    """The question came after so many turns."""
    question: str
    value: str
    """What the answer should contain."""
    answer: str
    right: bool
    prompt_tokens: int


def draw_facts(count: int, *, seed: int) -> tuple[Told, ...]:
    """So many facts about the speaker.

    Raises:
        ConfigError: there are not as many attributes, or the count is negative.
    """
    plain = [attribute for attribute in ATTRIBUTES if attribute.values not in GENERATED]
    if not 0 <= count <= len(plain):
        raise ConfigError(f"facts is {count}: expected 0 to {len(plain)}, one for each attribute there is")
    draw, values, told, known = random.Random(seed), Values(()), list[Told](), list[str]()
    for attribute in draw.sample(plain, count):
        own, other = (Fact(attribute, _new_value(values, attribute.values, known, draw)) for _ in range(2))
        statement, question = draw.choice(attribute.test.statements), draw.choice(attribute.test.questions)
        told.append(Told(own.say(statement), question, own.value, other.say(statement)))
    return tuple(told)


def _new_value(values: Values, kind: str, known: list[str], draw: random.Random) -> str:
    known.append(values.other(kind, known, draw, split="test", mix=ValueMix()))
    return known[-1]


def ask(
    engine: DeltaMemEngine,
    facts: Sequence[Told],
    condition: str,
    *,
    turn: int,
    session: str | None = None,
    recent: int | None = None,
    shown: Sequence[MessageLike] = (),
) -> list[Asked]:
    """Asks for each fact by itself; nothing of it is kept.

    Args:
        engine: the engine.
        facts: what to ask for.
        condition: what this is called.
        turn: how many turns there were before.
        session: whose memory; None: the frozen model.
        recent: overrides the engine's `recent_messages`.
        shown: what stands in the prompt before the question.
    """
    asked = []
    for fact in facts:
        prompt = [*shown, {"role": "user", "content": fact.question}]
        said = engine.generate(
            prompt, session=session, memory="read", recent_messages=recent, max_new_tokens=ANSWER_TOKENS
        )
        answer, tokens = said.reply.content, said.usage.prompt_tokens
        right = contains(answer, fact.value)
        asked.append(Asked(condition, turn, fact.question, fact.value, answer, right, tokens))
    return asked


def render_answers(asked: Sequence[Asked]) -> str:
    """How many were right under each condition, and all answers: two tables, as Markdown."""
    lines = ["## The facts of the first turns, asked at the end", ""]
    lines += ["| condition | after turn | prompt tokens | right |", "|---|---|---|---|"]
    for condition in dict.fromkeys(one.condition for one in asked):
        mine = [one for one in asked if one.condition == condition]
        right, prompt = sum(one.right for one in mine), max(one.prompt_tokens for one in mine)
        lines.append(f"| {condition} | {mine[0].turn} | {prompt} | {right} of {len(mine)} |")
    lines += ["", "| question | expected | condition | answer | |", "|---|---|---|---|---|"]
    for question in dict.fromkeys(one.question for one in asked):
        for one in asked:
            if one.question == question:
                answer = " ".join(one.answer.split()).replace("|", "\\|")
                mark = "right" if one.right else ""
                lines.append(f"| {question} | {one.value} | {one.condition} | {answer} | {mark} |")
    return "\n".join(lines)
