"""What was said, as the session's ledger and as LlamaIndex has it."""

import json
from collections.abc import Callable, Iterable

from llama_index.core.base.llms.types import ChatMessage

from deltamem_agents import DeltaMemEngine

Line = list[tuple[str, str]]
Said = Callable[[str], Line]


def spoken_in(engine: DeltaMemEngine, session: str) -> Line:
    """The ledger of a session: who said what, in order."""
    info = engine.store.session(session)
    if info is None or info.head is None:
        return []
    entries = [entry for turn in engine.store.line(info.head) for entry in turn.entries]
    contents = [json.loads(entry.text)["content"] if entry.text else "…" for entry in entries]
    return [(entry.role, content) for entry, content in zip(entries, contents, strict=True)]


def spoken(messages: Iterable[ChatMessage]) -> Line:
    """Who says what in messages."""
    return [(message.role.value, message.content or "") for message in messages]


def user(text: str) -> ChatMessage:
    """A user's message."""
    return ChatMessage(role="user", content=text)


def assistant(text: str) -> ChatMessage:
    """A reply."""
    return ChatMessage(role="assistant", content=text)
