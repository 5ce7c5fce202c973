"""Test-time learning: labels without a meaning are learnt from examples in the conversation."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.suites.conversation import Conversation, Question, Suite, user
from deltamem_agents.evaluate.suites.scoring import short_answer
from deltamem_agents.evaluate.suites.sources import Source, read_text

SOURCE = Source(
    "trec", "train_5500.label", "https://cogcomp.seas.upenn.edu/Data/QA/QC (question classification; for research)"
)


def intents(
    data: Path | None, *, draws: int = 50, labels: int = 6, examples: int = 4, asked: int = 4, seed: int = 0
) -> Suite:
    """Questions of TREC, labelled by numbers that are drawn anew for each conversation; new ones are asked for.

    Args:
        data: TREC's file, or a folder above it.
        draws: conversations.
        labels: kinds of questions in each.
        examples: told of each kind.
        asked: new texts, each of another kind.
        seed: draws all of it.

    Raises:
        ConfigError: the file is missing, or holds fewer kinds or texts.
    """
    path = SOURCE.files(data)[0]
    texts = _by_kind(path)
    usable = {kind: found for kind, found in texts.items() if len(found) > examples}
    if len(usable) < labels or asked > labels:
        raise ConfigError(
            f"{path} holds {len(usable)} kinds with more than {examples} texts, expected {labels} or more, and asked "
            f"is {asked}, expected at most as many as labels: ask for fewer"
        )
    talks = [_conversation(n, usable, random.Random(f"{seed} {n}"), labels, examples, asked) for n in range(draws)]
    title = f"Intents: {labels} labels × {examples} examples of TREC, numbers for labels, new texts asked for"
    return Suite(
        name="intents",
        title=title,
        conversations=tuple(talks),
        score=lambda answer, question: short_answer(answer, question.answers),
        answer_tokens=8,
    )


def _by_kind(path: Path) -> dict[str, list[str]]:
    """TREC's texts by their fine label."""
    texts: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(path, encoding="latin-1").splitlines(), 1):
        kind, _, text = line.partition(" ")
        if ":" not in kind or not text:
            raise ConfigError(f"{path}, line {number} is {line!r}, expected KIND:detail and a question, as TREC has it")
        texts.setdefault(kind, []).append(text.replace(" ?", "?").strip())
    return {kind: list(dict.fromkeys(found)) for kind, found in sorted(texts.items())}


def _conversation(
    number: int, texts: Mapping[str, Sequence[str]], rng: random.Random, labels: int, examples: int, asked: int
) -> Conversation:
    kinds = rng.sample(sorted(texts), labels)
    label = dict(zip(kinds, rng.sample(range(1, 10 * labels), labels), strict=True))
    drawn = {kind: rng.sample(texts[kind], examples + 1) for kind in kinds}
    shown = [(text, kind) for kind in kinds for text in drawn[kind][:-1]]
    rng.shuffle(shown)
    candidates = tuple(str(label[kind]) for kind in kinds)
    questions = [
        Question(
            id=f"intents-{number}-{n}",
            text=f"{drawn[kind][-1]} → label?",
            answers=(str(label[kind]),),
            category=kind.split(":")[0],
            candidates=candidates,
            evidence=tuple(place for place, (_, of) in enumerate(shown) if of == kind),
        )
        for n, kind in enumerate(kinds[:asked])
    ]
    told = tuple(user(f"{text} → label {label[kind]}") for text, kind in shown)
    return Conversation(name=f"intents-{number}", parts=(told,), questions=tuple(questions))
