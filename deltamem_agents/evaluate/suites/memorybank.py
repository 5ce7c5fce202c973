"""MemoryBank: ten days of chats with a companion, and questions that its authors let people judge."""

import json
from pathlib import Path
from typing import Any

from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.suites.conversation import Conversation, Question, Suite
from deltamem_agents.evaluate.suites.scoring import short_answer
from deltamem_agents.evaluate.suites.sources import Source, malformed, read_json, read_text
from deltamem_agents.messages import Message

_ORIGIN = "https://github.com/zhongwanjun/MemoryBank-SiliconFriend (eval_data/en; MIT)"
SOURCE = Source("memorybank", "memory_bank_en.json", _ORIGIN)
PROBES = "probing_questions_en.jsonl"


def memorybank(data: Path | None) -> Suite:
    """MemoryBank's users, day by day, and its probing questions.

    It publishes no right answers. What the frozen model says when it sees everything that fits stands in for them:
    scores then say how close a condition comes to the full history, not whether it is right.

    Args:
        data: the folder of `memory_bank_en.json` and `probing_questions_en.jsonl`, one above it, or the former file.

    Raises:
        ConfigError: a file is missing or of another shape.
    """
    path = SOURCE.files(data)[0]
    probes_path = path.parent / PROBES
    if not probes_path.is_file():
        raise ConfigError(f"there is no {PROBES} beside {path}: get it from {_ORIGIN}")
    probes: dict[str, list[str]] = {}
    try:
        for line in read_text(probes_path).splitlines():
            if line.strip():
                probes |= {name.strip(): asked for name, asked in _object(line).items()}
        users: dict[str, Any] = read_json(path)  # type: ignore[assignment]
        talks = [_conversation(name.strip(), user["history"], probes[name.strip()]) for name, user in users.items()]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise malformed(path, error, "users with a history by day, and questions for each of them") from error
    title = "MemoryBank: no right answers are published; references are the frozen model's with all that fits"
    return Suite(
        name="memorybank",
        title=title,
        conversations=tuple(talks),
        score=lambda answer, question: short_answer(answer, question.answers),
        answer_tokens=32,
    )


def _object(line: str) -> dict[str, list[str]]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise TypeError(f"{line[:40]!r} is no object")
    return value


def _conversation(name: str, history: dict[str, list[dict[str, str]]], asked: list[str]) -> Conversation:
    parts = []
    for day, exchanges in sorted(history.items()):
        said: list[Message] = []
        for exchange in exchanges:
            said.append(Message(role="user", content=f"({day}) {exchange['query']}"))
            said.append(Message(role="assistant", content=exchange["response"]))
        parts.append(tuple(said))
    questions = [
        Question(id=f"{name}-{number}", text=text.strip().strip('"'), answers=(), category="probe")
        for number, text in enumerate(asked)
    ]
    return Conversation(name=name, parts=tuple(part for part in parts if part), questions=tuple(questions))
