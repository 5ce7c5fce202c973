"""Messages: what goes into a prompt and into memory."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from deltamem_agents.config import Role
from deltamem_agents.errors import MessageError


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    """Who speaks."""
    content: str
    """The text."""
    id: str | None = None
    """The caller's name for this message, if it has one; the same id is the same message."""

    @field_validator("content", "id")
    @classmethod
    def _is_unicode(cls, text: str | None) -> str | None:
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"not Unicode text, {error.reason} (character {error.start})") from error
        return text

    def digest(self) -> str:
        """Identifies role and content, for aligning histories."""
        return hashlib.sha256(json.dumps([self.role, self.content]).encode()).hexdigest()[:32]


MessageLike: TypeAlias = Message | Mapping[str, object]


def as_messages(messages: Sequence[MessageLike]) -> list[Message]:
    """Checks and converts messages.

    Raises:
        MessageError: names the message by position, and what is wrong with it.
    """
    if isinstance(messages, str | Mapping | Message):
        found = type(messages).__name__
        raise MessageError(f"messages must be a sequence of messages, got a single {found}: wrap it in a list")
    if not isinstance(messages, Iterable):
        found = type(messages).__name__
        raise MessageError(f"messages must be a sequence of messages, got {found}: give a list of messages")
    converted = []
    for position, message in enumerate(messages):
        if isinstance(message, Message):
            converted.append(message)
            continue
        try:
            converted.append(Message.model_validate(message))
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'message'}: {e['msg']}" for e in error.errors())
            raise MessageError(
                f"message {position} is not valid ({found}): expected {{'role': 'system' | 'user' | 'assistant' | "
                "'tool', 'content': text}"
            ) from error
    if not converted:
        raise MessageError("messages is empty: give at least one message")
    return converted
