"""Fact consolidation: facts are told, some are told anew with another value, and the last one counts."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.suites.conversation import Conversation, Question, Suite, user
from deltamem_agents.evaluate.suites.scoring import short_answer
from deltamem_agents.evaluate.suites.sources import Source, malformed, read_json
from deltamem_agents.train.facts import VALUES, made_up_word

SOURCE = Source(
    "mquake_templates",
    "*_templates.json",
    "https://github.com/princeton-nlp/MQuAKE (cloze_templates.json and question_templates.json; MIT)",
)
RELATIONS = {
    "P19": "city", "P20": "city", "P159": "city", "P740": "city", "P937": "city", "P26": "person", "P40": "person",
    "P50": "person", "P112": "person", "P170": "person", "P127": "company", "P108": "company", "P176": "company",
    "P178": "company",
}  # fmt: skip
"""Relations of MQuAKE, and the kind of values they get here."""


@dataclass(frozen=True, slots=True)
class _Fact:
    relation: str
    subject: str
    old: str | None
    """The value it had before, where it was told anew."""
    value: str


def facts(data: Path | None, *, draws: int = 50, count: int = 8, edited: int = 4, seed: int = 0) -> Suite:
    """Facts about made-up names in MQuAKE's words, some of them edited; every one is asked for.

    Args:
        data: MQuAKE's two template files' folder, or one above it.
        draws: conversations.
        count: facts in each.
        edited: so many of them get another value, told after all the first ones.
        seed: draws all of it.

    Raises:
        ConfigError: the files are missing or of another shape, or more facts are edited than there are.
    """
    if not 0 <= edited <= count or count < 1:
        raise ConfigError(f"{edited} of {count} facts are edited, expected at most as many as there are")
    found = {path.stem.removesuffix("_templates"): path for path in SOURCE.files(data)}
    try:
        cloze, asked = (_templates(found[name]) for name in ("cloze", "question"))
    except KeyError as error:
        beside = next(iter(found.values()))
        raise ConfigError(f"there is no {error.args[0]}_templates.json beside {beside}: get both") from error
    usable = sorted(RELATIONS.keys() & cloze.keys() & asked.keys())
    if not usable:
        raise ConfigError(f"{found['cloze']} has none of the relations {', '.join(RELATIONS)}: get the file anew")
    talks = []
    for number in range(draws):
        rng = random.Random(f"facts {seed} {number}")
        told = [_draw(rng, rng.choice(usable), edited=n < edited) for n in range(count)]
        talks.append(_conversation(f"facts-{number}", told, cloze, asked, rng))
    return Suite(
        name="facts",
        title=f"Facts: {count} about made-up names, {edited} of them edited later; values from the training lists",
        conversations=tuple(talks),
        score=lambda answer, question: short_answer(answer, question.answers),
        answer_tokens=12,
    )


def _templates(path: Path) -> dict[str, str]:
    value = read_json(path)
    if not isinstance(value, dict) or not all(isinstance(text, str) and "[X]" in text for text in value.values()):
        raise malformed(path, TypeError(type(value).__name__), "an object of texts with [X] in them, by relation")
    return value


def _draw(rng: random.Random, relation: str, *, edited: bool) -> _Fact:
    old, value = rng.sample(VALUES[RELATIONS[relation]], 2)
    return _Fact(relation, made_up_word(rng, "test").capitalize(), old if edited else None, value)


def _conversation(
    name: str, told: list[_Fact], cloze: Mapping[str, str], asked: Mapping[str, str], rng: random.Random
) -> Conversation:
    first = [(fact, fact.old or fact.value) for fact in told]
    again = [(fact, fact.value) for fact in told if fact.old is not None]
    rng.shuffle(first)
    rng.shuffle(again)
    said = [*first, *again]
    questions = []
    for number, fact in enumerate(told):
        kind = VALUES[RELATIONS[fact.relation]]
        known = {fact.value, *([fact.old] if fact.old else [])}
        others = rng.sample([value for value in kind if value not in known], 8 - len(known))
        questions.append(
            Question(
                id=f"{name}-{number}",
                text=asked[fact.relation].replace("[X]", fact.subject),
                answers=(fact.value,),
                category="edited" if fact.old else "kept",
                candidates=_mixed(rng, [*sorted(known), *others]),
                evidence=(max(place for place, (of, _) in enumerate(said) if of is fact),),
            )
        )
    texts = tuple(
        user(cloze[fact.relation].replace("[X]", fact.subject).replace("__", value).rstrip(" .") + ".")
        for fact, value in said
    )
    return Conversation(name=name, parts=(texts,), questions=tuple(questions))


def _mixed(rng: random.Random, values: list[str]) -> tuple[str, ...]:
    rng.shuffle(values)
    return tuple(values)
