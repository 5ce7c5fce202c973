"""Other people's data as episodes: bAbI tasks, intent sets, and your own chat logs."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from deltamem_agents.errors import TrainingError
from deltamem_agents.messages import Message
from deltamem_agents.train.episode import Episode, contains, numbered_lines

_CONVERSATION = TypeAdapter(list[Message])


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


def chat_episodes(path: Path, *, window: int = 2) -> list[Episode]:
    """Episodes from your own conversations: predict the assistant's replies with older turns only in memory.

    Args:
        path: JSONL file or folder of them, one conversation a line: a list of {"role", "content"}, or an object that
            has such a list under "messages".
        window: how many messages before the question stay visible. Replies that already stand in them are passed over.

    Raises:
        TrainingError: no file there, a line that is no conversation, or no reply with messages older than the window.
    """
    episodes: list[Episode] = []
    for file in files_in(path, ".jsonl"):
        for number, line in numbered_lines(file):
            episodes += _replies(_conversation(file, number, line), window)
    if not episodes:
        raise TrainingError(
            f"{path} has no reply with messages older than a window of {window}: expected longer conversations"
        )
    return episodes


def _conversation(path: Path, number: int, line: str) -> list[Message]:
    try:
        data = json.loads(line)
        return _CONVERSATION.validate_python(data["messages"] if isinstance(data, dict) else data)
    except ValidationError as error:
        found = "; ".join(f"message {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    except (ValueError, KeyError) as error:
        found = f"{type(error).__name__}: {error}"
    raise TrainingError(
        f"{path}, line {number} is not a conversation ({found}): expected a list of {{role, content}}, or an object "
        "with such a list under messages"
    )


def _replies(messages: list[Message], window: int) -> Iterator[Episode]:
    for position in range(1, len(messages)):
        question, reply = messages[position - 1], messages[position]
        start = max(0, position - 1 - window)
        earlier, visible = messages[:start], messages[start : position - 1]
        spoken = [m for m in earlier if m.role != "system"]
        if (question.role, reply.role) != ("user", "assistant") or not (spoken and question.content and reply.content):
            continue
        if any(contains(m.content, reply.content) for m in visible):
            continue
        yield Episode(
            earlier=tuple(earlier),
            window=tuple(visible),
            question=question.content,
            answer=reply.content,
            tags=("chat",),
        )
