"""LlamaIndex messages to and from the engine's, and the stamp that says whose they are."""

import uuid
from collections.abc import Mapping, Sequence

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    ContentBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from pydantic import BaseModel, ConfigDict

from deltamem_agents import Message, MessageError, Role, as_messages, check_tool_messages
from llama_index_deltamem.toolcalls import said_calls

ROLES: dict[MessageRole, Role] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


class SessionStamp(BaseModel):
    """Whose memory a message is from."""

    model_config = ConfigDict(frozen=True)

    engine_id: str
    """The engine's name in the process."""
    session_id: str
    """The session."""
    thread: str
    """The label of the conversation within the session."""
    window: int
    """How many recent messages are also in the prompt, at least."""


class StampedMessage(ChatMessage):
    """A message that a `DeltaMemory` gave out: an LLM that gets it knows whose memory to read."""

    delta_session: SessionStamp
    """Whose it is."""
    delta_id: str
    """What the session's ledger knows it by."""


def to_engine(messages: Sequence[ChatMessage], *, session: str | None = None, whole: bool = False) -> list[Message]:
    """Converts messages.

    Args:
        messages: the messages; those stamped for the session keep the id that its ledger knows them by.
        session: whose messages count as known.
        whole: whether there is nothing but these messages; then a tool's answer needs its call among them.

    Raises:
        MessageError: a block that is no text, a tool's answer without its call, no messages.
    """
    names: dict[str, str] = {}
    said: list[dict[str, object]] = []
    for position, message in enumerate(messages):
        role = ROLES[message.role]
        past = any(ROLES[later.role] == "assistant" for later in messages[position:])
        plain: dict[str, object] = {"role": role, "content": _text(position, message, past=past)}
        if role == "assistant" and (calls := said_calls(message)):
            plain["tool_calls"] = calls
            names |= {str(call["id"]): str(call["name"]) for call in calls if "id" in call}
        if role == "tool":
            answered = message.additional_kwargs.get("tool_call_id")
            plain["tool_call_id"] = answered
            plain["name"] = message.additional_kwargs.get("name") or names.get(str(answered))
        if isinstance(message, StampedMessage) and message.delta_session.session_id == session:
            plain["id"] = message.delta_id
        said.append(plain)
    converted = as_messages(said)
    if whole:
        check_tool_messages(converted)
    return converted


def from_engine(message: Message, stamp: SessionStamp) -> StampedMessage:
    """A message of a session's ledger as LlamaIndex's."""
    blocks: list[ContentBlock] = [TextBlock(text=message.content)] if message.content or not message.tool_calls else []
    blocks += call_blocks(message)
    answers = {"tool_call_id": message.tool_call_id, "name": message.name} if message.role == "tool" else {}
    return StampedMessage(
        role=MessageRole(message.role),
        blocks=blocks,
        additional_kwargs={key: value for key, value in answers.items() if value is not None},
        delta_session=stamp,
        delta_id=message.id or "",
    )


def call_blocks(message: Message, names: Mapping[str, str] = {}) -> list[ToolCallBlock]:
    """A message's tool calls as LlamaIndex's blocks; `names`: other names for some tools."""
    return [
        ToolCallBlock(tool_call_id=call.id, tool_name=names.get(call.name, call.name), tool_kwargs=dict(call.arguments))
        for call in message.tool_calls
    ]


def session_name(given: str | int | uuid.UUID) -> str:
    """A session's name, also where it is given as a number or a UUID."""
    return str(given) if isinstance(given, int | uuid.UUID) and not isinstance(given, bool) else given  # type: ignore[return-value]


def new_id() -> str:
    """An id for a message that has none yet."""
    return uuid.uuid4().hex


def _text(position: int, message: ChatMessage, *, past: bool) -> str:
    """The text of a message. `past`: it has been replied to, or is a reply; then what is no text is passed over."""
    texts = []
    for block in message.blocks:
        parts = block.content if isinstance(block, CitableBlock) else [block]
        for part in parts:
            if isinstance(part, TextBlock):
                texts.append(part.text)
            elif not past and not isinstance(part, CachePoint):
                raise MessageError(
                    f"message {position} ({message.role.value}) holds a {type(part).__name__}: this is a text model, "
                    "expected text blocks; put what the block says into words, or leave it out"
                )
    return "\n".join(texts)
