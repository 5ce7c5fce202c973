"""Your own conversations as episodes: predict the assistant's replies with older turns only in memory."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from deltamem_agents.errors import TrainingError
from deltamem_agents.messages import Message
from deltamem_agents.train.convert import files_in
from deltamem_agents.train.episode import Episode, contains, numbered_lines

SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Who speaks in ShareGPT's words, and in ours."""
_CONVERSATION = TypeAdapter(list[Message])


@dataclass(frozen=True, slots=True)
class Chats:
    """Episodes of conversations, some conversations kept out of training."""

    train: tuple[Episode, ...]
    """To learn from."""
    held_out: tuple[tuple[Episode, ...], ...]
    """To be scored, a tuple for each conversation."""
    found: str
    """How many there are, in words."""


def load_chats(path: Path, *, window: int, held_out: float) -> Chats:
    """Episodes of a file or folder of conversations, as `chat_episodes` makes them.

    Args:
        path: the file or folder.
        window: how many messages before the question stay visible.
        held_out: share of the conversations that are kept out of training, two at least; 0: none.

    Raises:
        TrainingError: as `chat_episodes` does, or conversations are too few for two of them to be held out.
    """
    read = conversations_in(path)
    found = _with_episodes(path, read, window)
    count = sum(map(len, found))
    words = f"{path.name}: {_count(count, 'episode')} in {len(found)} of {_count(len(read), 'conversation')}"
    if not held_out:
        return Chats(tuple(e for episodes in found for e in episodes), (), words)
    if len(found) < 3:
        raise TrainingError(
            f"{path} has {_count(len(found), 'conversation')} with a reply to learn, expected at least 3: two are held "
            "out, and scored from their own memory and from each other's; add more, or set held_out: 0 to learn from "
            "all of them, unscored"
        )
    chosen = set(random.Random("held out").sample(range(len(found)), max(2, round(held_out * len(found)))))
    kept = tuple(tuple(episodes) for number, episodes in enumerate(found) if number in chosen)
    train = tuple(e for number, episodes in enumerate(found) if number not in chosen for e in episodes)
    words += f"; {len(kept)} held out ({_count(count - len(train), 'episode')})"
    return Chats(train, kept, words)


def chat_episodes(path: Path, *, window: int = 2) -> list[Episode]:
    """Episodes from your own conversations: predict the assistant's replies with older turns only in memory.

    Args:
        path: a file, or a folder of them: JSONL with a conversation a line, or JSON with an array of them. A
            conversation is a list of {"role", "content"}, or of ShareGPT's {"from", "value"}, or an object that has
            such a list under "messages" or "conversations".
        window: how many messages before the question stay visible. Replies that already stand in them are passed over.

    Raises:
        TrainingError: no file there, an empty one, something in it that is no conversation, or no reply with messages
            older than the window.
    """
    return [e for episodes in _with_episodes(path, conversations_in(path), window) for e in episodes]


def conversations_in(path: Path) -> list[list[Message]]:
    """The conversations of a file, or of a folder's JSONL and JSON files.

    Raises:
        TrainingError: no file there, an empty one, or something in it that is no conversation: names the place.
    """
    return [found for file in files_in(path, ".jsonl", ".json") for found in _read(file)]


def _read(path: Path) -> list[list[Message]]:
    lines = numbered_lines(path)
    if not lines:
        raise TrainingError(f"{path} is empty: expected conversations, one JSON list of messages a line")
    if path.suffix == ".json":
        try:
            data = json.loads("\n".join(line for _, line in lines))
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):  # that would be JSONL under another name
                raise TrainingError(f"{path} is not JSON ({error}): expected an array of conversations") from error
        else:
            several = isinstance(data, list) and not any(isinstance(m, dict) and _speaks(m) for m in data)
            numbered = enumerate(data if several else [data], 1)
            return [_conversation(f"{path}, conversation {number}", one) for number, one in numbered]
    return [_parse(path, number, line) for number, line in lines]


def _parse(path: Path, number: int, line: str) -> list[Message]:
    place = f"{path}, line {number}"
    try:
        data = json.loads(line)
    except ValueError as error:
        raise TrainingError(
            f"{place} is not JSON ({error}): expected a conversation a line, or a .json file"
        ) from error
    return _conversation(place, data)


def _conversation(place: str, data: object) -> list[Message]:
    found = ""
    if isinstance(data, dict):
        data = data.get("messages", data.get("conversations"))
    if not isinstance(data, list):
        found = "there is no list of messages"
    else:
        try:
            return _CONVERSATION.validate_python([_in_our_words(m) for m in data])
        except ValidationError as error:
            found = "; ".join(f"message {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    raise TrainingError(
        f"{place} is not a conversation ({found}): expected a list of {{role, content}} or {{from, value}}, or an "
        "object with such a list under messages or conversations"
    )


def _speaks(data: dict[str, object]) -> bool:
    """Whether this is a message, not a conversation."""
    return "role" in data or "from" in data


def _in_our_words(message: object) -> object:
    """A message of ShareGPT as one of ours; anything else as it is."""
    if not isinstance(message, dict) or "from" not in message:
        return message
    speaker = message["from"]
    return {"role": SHAREGPT_ROLES.get(str(speaker), speaker), "content": message.get("value")}


def _with_episodes(path: Path, conversations: list[list[Message]], window: int) -> list[list[Episode]]:
    """The episodes of each conversation that has any."""
    found = [episodes for messages in conversations if (episodes := list(_replies(messages, window)))]
    if not found:
        raise TrainingError(
            f"{path} has {_count(len(conversations), 'conversation')}, and no reply with messages older than a window "
            f"of {window}: expected longer conversations, or a smaller window"
        )
    return found


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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
