"""Prompts that a memory has nothing to do with, put to full memories: do they get the frozen model's replies?"""

import random
from collections.abc import Sequence
from typing import Literal

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.evaluate.asking import told_sessions
from deltamem_agents.evaluate.cases import Case
from deltamem_agents.evaluate.judging import Verdict, keeps
from deltamem_agents.evaluate.report import Asked
from deltamem_agents.evaluate.rows import PLAIN, Condition
from deltamem_agents.messages import Message
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.episodes import EpisodeMix
from deltamem_agents.train.phrases import phrases
from deltamem_agents.train.unrelated import general_questions

MEMORIES = 8
"""So many full memories at most share the prompts of a seed."""
_LONG = "definitions and how-to"
"""The kind of general questions whose answers are not short."""
_TOLD = EpisodeMix(open_share=0.5, dates=0.15)


def plain_prompts(
    kind: Literal["talk", "questions"], source: TrainingData, rng: random.Random, count: int
) -> list[str]:
    """So many prompts, `PLAIN` at most, that training never saw: half statements, half small talk, or questions."""
    count = min(count, PLAIN)
    if kind == "questions":
        long = phrases("general_questions")["test"][_LONG]
        return rng.sample([text for text in general_questions("test") if text not in long], count)
    talk = [text for texts in phrases("small_talk")["test"].values() for text in texts]
    told = [source.generate(_TOLD, rng, split="test").earlier[0].content for _ in range(count // 2)]
    return [*told, *rng.sample(talk, count - len(told))]


def asked_of_full_memories(
    engine: DeltaMemEngine,
    row: str,
    seed: int,
    cases: Sequence[Case],
    prompts: Sequence[str],
    *,
    kind: Literal["talk", "questions"],
    tokens: int,
) -> list[Asked]:
    """Replies to each prompt from one of the cases' memories, from another one, and of the frozen model.

    A reply is right if it is the frozen model's: to a statement or small talk in every token, of which there are few;
    to a question in what it says.
    """
    found: dict[Condition, list[str]] = {}
    with told_sessions(engine, cases) as names:
        for condition, shift in (("own", 0), ("swapped", 1)):
            whose = [names[(number + shift) % len(names)] for number in range(len(prompts))]
            found[condition] = _replies(engine, whose, prompts, tokens)  # type: ignore[index]
    found["frozen"] = _replies(engine, [None] * len(prompts), prompts, tokens)
    asked = []
    for number, prompt in enumerate(prompts):
        said = {condition: replies[number] for condition, replies in found.items()}
        plain = said["frozen"]
        right = {c: text == plain if kind == "talk" else keeps(text, plain, prompt) for c, text in said.items()}
        verdicts = {c: Verdict(same, stale=False, unsure=False) for c, same in right.items()}
        asked.append(Asked(row, seed, f"plain {kind}", prompt, (plain,), (), said, verdicts))
    return asked


def _replies(engine: DeltaMemEngine, sessions: Sequence[str | None], prompts: Sequence[str], tokens: int) -> list[str]:
    messages = [[Message(role="user", content=text)] for text in prompts]
    turns = engine.batch(messages, sessions=sessions, memory="read", recent_messages=0, max_new_tokens=tokens)
    return [turn.reply.content for turn in turns]
