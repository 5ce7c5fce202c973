"""XQuAD in English: paragraphs are told sentence by sentence, then asked about; scored as SQuAD is."""

import re
from pathlib import Path
from typing import Any

from deltamem_agents.evaluate.suites.conversation import Conversation, Question, Suite, user
from deltamem_agents.evaluate.suites.scoring import short_answer
from deltamem_agents.evaluate.suites.sources import Source, malformed, read_json

SOURCE = Source("xquad", "xquad.en.json", "https://github.com/google-deepmind/xquad (CC BY-SA 4.0)")


def xquad(data: Path | None) -> Suite:
    """XQuAD's English paragraphs and questions.

    Args:
        data: its JSON file, or a folder above it.

    Raises:
        ConfigError: the file is missing or of another shape.
    """
    path = SOURCE.files(data)[0]
    try:
        articles: Any = read_json(path)
        paragraphs = [paragraph for article in articles["data"] for paragraph in article["paragraphs"]]
        talks = tuple(_conversation(number, paragraph) for number, paragraph in enumerate(paragraphs))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise malformed(path, error, "SQuAD's format: data, paragraphs, context, qas") from error
    return Suite(
        name="xquad",
        title="XQuAD (English): reading a paragraph, F1 and exact match as SQuAD has them",
        conversations=talks,
        score=lambda answer, question: short_answer(answer, question.answers),
        answer_tokens=16,
    )


def _conversation(number: int, paragraph: dict[str, Any]) -> Conversation:
    starts = [0, *(found.end() for found in re.finditer(r"(?<=[.!?]) +(?=[A-Z\"'(0-9])", paragraph["context"]))]
    ends = [*starts[1:], len(paragraph["context"])]
    told = tuple(user(paragraph["context"][a:b].strip()) for a, b in zip(starts, ends, strict=True))
    questions = []
    for qa in paragraph["qas"]:
        begin = qa["answers"][0]["answer_start"]
        place = max(n for n, start in enumerate(starts) if start <= begin)
        answers = tuple(dict.fromkeys(answer["text"] for answer in qa["answers"]))
        asked = f"Answer in a few words. {qa['question']}"
        questions.append(Question(id=qa["id"], text=asked, answers=answers, category="all", evidence=(place,)))
    return Conversation(name=f"paragraph-{number}", parts=(told,), questions=tuple(questions))
