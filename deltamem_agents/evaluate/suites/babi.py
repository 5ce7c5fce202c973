"""bAbI: short stories, one question at the end of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.suites.conversation import Conversation, Question, Suite, user
from deltamem_agents.evaluate.suites.scoring import short_answer
from deltamem_agents.evaluate.suites.sources import Source, read_text

SOURCE = Source("babi", "qa*_test.txt", "the bAbI tasks v1.2 of Facebook AI Research (folder en; CC BY 3.0)")
MOST_CANDIDATES = 20
"""Where a task has more answers, lists and paths, their combinations are no choice."""


@dataclass(frozen=True, slots=True)
class _Story:
    """What was told before a question, and the question."""

    told: tuple[str, ...]
    question: str
    answer: str
    """Its parts with commas, the first letter large, as a reply begins."""
    evidence: tuple[int, ...]


def babi(data: Path | None, *, stories: int | None = 20) -> Suite:
    """The last question of each story of bAbI's test files, ranked among all answers of its task.

    Args:
        data: the folder of the test files, one above it, or one file.
        stories: so many of each task, spread over its file; None: all.

    Raises:
        ConfigError: the files are missing, or hold something else.
    """
    talks: list[Conversation] = []
    for path in SOURCE.files(data):
        asked = list(_asked(path))
        told = [
            one for one, after in zip(asked, [*asked[1:], None], strict=True) if after is None or _begins(after, one)
        ]
        chosen = told[:: max(1, len(told) // stories)][:stories] if stories else told
        candidates = tuple(sorted({one.answer for one in asked}))
        if len(candidates) > MOST_CANDIDATES:
            candidates = ()
        talks += [_conversation(path.stem, n, story, candidates) for n, story in enumerate(chosen)]
    title = "bAbI: the last question of each story, ranked among the task's answers; also free answers"
    return Suite(
        name="babi",
        title=title,
        conversations=tuple(talks),
        score=lambda answer, question: short_answer(answer, question.answers),
        answer_tokens=12,
    )


def _begins(after: _Story, before: _Story) -> bool:
    """Whether a question belongs to a new story: what was told does not go on."""
    return after.told[: len(before.told)] != before.told


def _asked(path: Path) -> Iterator[_Story]:
    """Every question of a file, with what its story has told so far."""
    told: list[str] = []
    places: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        index, _, text = line.partition(" ")
        if not index.isdigit() or not text:
            raise ConfigError(f"{path}, line {number} is {line!r}, expected a number and a sentence, as bAbI has it")
        if index == "1":
            told, places = [], {}
        question, tab, rest = text.partition("\t")
        if not tab:
            places[index] = len(told)
            told.append(text.strip())
            continue
        gold, _, marks = rest.partition("\t")
        answer = ", ".join(part.strip() for part in gold.split(","))
        evidence = tuple(sorted(places[mark] for mark in marks.split() if mark in places))
        yield _Story(tuple(told), question.strip(), answer[:1].upper() + answer[1:], evidence)


def _conversation(task: str, number: int, story: _Story, candidates: tuple[str, ...]) -> Conversation:
    name = f"{task.split('_')[0]}-{number}"
    how = "Answer in words with commas." if "," in story.answer else "Answer in one word."
    question = Question(
        id=name,
        text=f"{how} {story.question}",
        answers=(story.answer,),
        category=task.removesuffix("_test"),
        candidates=candidates,
        evidence=story.evidence,
    )
    return Conversation(name=name, parts=(tuple(map(user, story.told)),), questions=(question,))
