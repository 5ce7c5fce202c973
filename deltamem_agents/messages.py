"""Messages: what goes into a prompt and into memory."""

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator
from pydantic_core import PydanticSerializationError, to_jsonable_python

from deltamem_agents.config import Role
from deltamem_agents.errors import MessageError

TEXTS = ("text", "input_text", "output_text")
"""Types of content parts that hold text."""
UNSAID = ("annotations", "audio", "function_call", "reasoning", "reasoning_content", "refusal")
"""What OpenAI's and similar clients put beside an assistant's content: no part of what was said."""


def _checked_unicode(text: str | None) -> str | None:
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not Unicode text, {error.reason} (character {error.start})") from error
    return text


class ToolCall(BaseModel):
    """An assistant's wish to have a tool called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    """The tool."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """A JSON object; a string that holds one is read."""
    id: str = Field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}", min_length=1)
    """What the tool's answer refers to; a new one unless given."""

    @model_validator(mode="before")
    @classmethod
    def _openai_style(cls, call: object) -> object:
        """Also takes `{"id": …, "type": "function", "function": {"name": …, "arguments": …}}`."""
        if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
            rest = {key: value for key, value in call.items() if key not in ("type", "function")}
            return {**rest, **call["function"]}
        return call

    @field_validator("arguments", mode="before")
    @classmethod
    def _read(cls, arguments: object) -> object:
        """Reads a string; what JSON has no form for, such as dates and NaN in a call of long ago, becomes text."""
        try:
            value = (json.loads(arguments) if arguments.strip() else {}) if isinstance(arguments, str) else arguments
        except json.JSONDecodeError as error:
            raise ValueError(f"{str(arguments)[:80]!r} is no JSON object ({error})") from error
        try:
            return json.loads(json.dumps(to_jsonable_python(value)), parse_constant=str)
        except (PydanticSerializationError, ValueError):
            return value  # the checks to come say what is wrong

    @field_validator("arguments")
    @classmethod
    def _is_json(cls, arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
        _checked_unicode(json.dumps(arguments, ensure_ascii=False, allow_nan=False))
        return arguments

    @field_validator("name", "id")
    @classmethod
    def _is_unicode(cls, text: str) -> str | None:
        return _checked_unicode(text)


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    """Who speaks."""
    content: str
    """The text. None is empty for an assistant or a tool; of OpenAI's content parts the texts are taken."""
    id: str | None = None
    """The caller's name for this message, if it has one; the same id is the same message."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The tools an assistant wants called."""
    tool_call_id: str | None = None
    """The call that a tool's message answers."""
    name: str | None = None
    """The tool that a tool's message is from."""
    snapshot: str | None = None
    """The snapshot that this reply was committed with, as its `Turn` gave it."""
    absorb: bool = True
    """False: it is shown where it stands and kept in the session, but never written: what a program says in the user's
    name."""
    cut: Annotated[int, Field(ge=0)] | None = None
    """Of a message that is longer than the context, the model is shown so many characters; set by the engine."""

    @model_validator(mode="before")
    @classmethod
    def _openai_style(cls, message: object) -> object:
        if not isinstance(message, Mapping):
            return message
        role, content = message.get("role"), message.get("content")
        plain = {key: value for key, value in message.items() if value is not None or key == "content"}
        if role == "assistant":
            plain = {key: value for key, value in plain.items() if key not in UNSAID}
            content = message.get("refusal") if content is None else content
        given = "content" in message or "tool_calls" in plain
        if content is None and given and role in ("assistant", "tool"):
            content = ""
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = "\n".join(text for part in content if (text := _part(part, role)) is not None)
        return plain if content is None else {**plain, "content": content}

    @field_validator("content", "id", "tool_call_id", "name", "snapshot")
    @classmethod
    def _is_unicode(cls, text: str | None) -> str | None:
        return _checked_unicode(text)

    @model_validator(mode="after")
    def _fits_the_role(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls on a message of the {self.role}: only an assistant calls tools")
        if self.snapshot is not None and self.role != "assistant":
            raise ValueError(f"snapshot on a message of the {self.role}: only replies, role assistant, have one")
        for field in ("tool_call_id", "name"):
            if getattr(self, field) is not None and self.role != "tool":
                raise ValueError(f"{field} on a message of the {self.role}: only a tool's message answers a call")
        return self

    @property
    def as_shown(self) -> "Message":
        """As the model sees it: cut where it is over-long, with a mark that says so."""
        if self.cut is None:
            return self
        calls = tuple(c.model_copy(update={"arguments": _cut(c.arguments, self.cut)}) for c in self.tool_calls)
        return self.model_copy(update={"content": _cut(self.content, self.cut), "tool_calls": calls, "cut": None})

    def digest(self) -> str:
        """Identifies role, content and tool calls (names and arguments), for aligning histories."""
        said: list[object] = [self.role, self.content]
        if self.tool_calls:
            said.append([[call.name, call.arguments] for call in self.tool_calls])
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def _part(part: object, role: object) -> str | None:
    """The text of a content part; None for what a past assistant did besides talking."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if isinstance(part, Mapping) and (kind in TEXTS or (kind == "refusal" and role == "assistant")):
        text = part.get("refusal" if kind == "refusal" else "text")
        if isinstance(text, str):
            return text
        raise ValueError(f"a content part of type {kind!r} holds {text!r}, expected a text under {kind!r}")
    if role == "assistant":
        return None
    raise ValueError(f"a content part of type {kind!r}: this is a text model, expected parts of type 'text'")


def _cut(value: JsonValue, most: int) -> JsonValue:
    """A value whose texts have at most so many characters, and a mark where they were cut."""
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]}\n[cut here: {most:,} of {len(value):,} characters are shown]"
    if isinstance(value, list):
        return [_cut(inner, most) for inner in value]
    if isinstance(value, dict):
        return {key: _cut(inner, most) for key, inner in value.items()}
    return value


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


def check_tool_messages(messages: Sequence[Message]) -> None:
    """Checks that every tool message answers a call before it.

    For whole histories: a trimmed one may rightly begin with an answer.

    Raises:
        MessageError: names the first message that doesn't, by position.
    """
    called: set[str] = set()
    for position, message in enumerate(messages):
        called.update(call.id for call in message.tool_calls)
        if message.role != "tool" or message.tool_call_id in called:
            continue
        raise MessageError(
            f"message {position} is a tool's answer with tool_call_id={message.tool_call_id!r}, but no message before "
            f"it makes that call (calls: {', '.join(sorted(called)) or 'none'}): keep calls and answers together"
        )
