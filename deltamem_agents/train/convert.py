"""Other people's data as episodes: bAbI tasks and intent sets."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from deltamem_agents.errors import TrainingError
from deltamem_agents.messages import Message
from deltamem_agents.train.episode import Episode, numbered_lines


def files_in(path: Path, *suffixes: str) -> list[Path]:
    """The file itself, or a folder's files with one of `suffixes`, sorted.

    Raises:
        TrainingError: nothing there.
    """
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in suffixes)
    if not found:
        what = "an empty folder" if path.is_dir() else "nothing"
        kinds = " or ".join(suffixes)
        raise TrainingError(f"{path} is {what}, expected a file or a folder with {kinds} files: check the path")
    return found


def babi_episodes(path: Path) -> list[Episode]:
    """The questions of bAbI task files (`1 Mary went to the hall.`, `2 Where is Mary?<tab>hall<tab>1`).

    Each statement of the story so far is a message; the question's answer is the reply.

    Raises:
        TrainingError: no file there, or a line that is neither a statement nor a question.
    """
    return [episode for file in files_in(path, ".txt") for episode in _babi_file(file)]


def _babi_file(path: Path) -> Iterator[Episode]:
    story: list[Message] = []
    for number, line in numbered_lines(path):
        index, _, text = line.partition(" ")
        if not index.isdigit() or not text:
            raise TrainingError(f"{path}, line {number} is {line!r}, expected a number and a sentence, as bAbI has it")
        if index == "1":
            story = []
        question, tab, rest = text.partition("\t")
        if not tab:
            story.append(Message(role="user", content=text.strip()))
            continue
        if not story:
            raise TrainingError(f"{path}, line {number} asks {line!r} before anything was told: expected a story first")
        parts = [part.strip() for part in rest.split("\t")[0].split(",")]
        answer = ", ".join(parts)
        yield Episode(
            earlier=tuple(story),
            question=question.strip(),
            answer=answer[0].upper() + answer[1:] + ".",
            values=tuple(dict.fromkeys(parts)),
            tags=("babi", path.stem.split("_")[0]),
        )


def intent_texts(path: Path) -> dict[str, list[str]]:
    """Texts by intent, from CSV files with the columns text and category, or Rasa NLU JSON files.

    Raises:
        TrainingError: no file there, or one that is neither.
    """
    texts: dict[str, list[str]] = {}
    for file in files_in(path, ".csv", ".json"):
        for text, intent in _csv_rows(file) if file.suffix == ".csv" else _rasa_rows(file):
            texts.setdefault(intent, []).append(" ".join(text.split()))
    return texts


def _csv_rows(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not {"text", "category"} <= set(rows.fieldnames or ()):
            raise TrainingError(f"{path} has the columns {rows.fieldnames}, expected text and category")
        return [(row["text"], row["category"]) for row in rows if row["text"] and row["category"]]


def _rasa_rows(path: Path) -> list[tuple[str, str]]:
    try:
        examples = json.loads(path.read_text(encoding="utf-8"))["rasa_nlu_data"]["common_examples"]
        return [(str(e["text"]), str(e["intent"])) for e in examples]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path} is not Rasa NLU data ({type(error).__name__}: {error}): expected rasa_nlu_data.common_examples, "
            "each with text and intent"
        ) from error
