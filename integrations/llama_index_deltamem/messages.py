"""LlamaIndex messages to and from the engine's, and the stamp that says whose they are."""

import uuid
from collections.abc import Sequence

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from pydantic import BaseModel, ConfigDict

from deltamem_agents import Message, MessageError, Role, as_messages, check_tool_messages

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
        plain: dict[str, object] = {"role": role, "content": _text(position, message)}
        calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
        if calls:
            plain["tool_calls"] = [_call(call) for call in calls]
            names |= {call.tool_call_id: call.tool_name for call in calls if call.tool_call_id}
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


def call_blocks(message: Message) -> list[ToolCallBlock]:
    """A message's tool calls as LlamaIndex's blocks."""
    return [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments))
        for call in message.tool_calls
    ]


def new_id() -> str:
    """An id for a message that has none yet."""
    return uuid.uuid4().hex


def _text(position: int, message: ChatMessage) -> str:
    texts = []
    for block in message.blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, CachePoint) or (
            isinstance(block, ThinkingBlock | ToolCallBlock) and ROLES[message.role] == "assistant"
        ):
            continue  # said elsewhere, or not said
        else:
            raise MessageError(
                f"message {position} ({message.role.value}) holds a {type(block).__name__}: this is a text model, "
                "expected text blocks; put what the block says into words, or leave it out"
            )
    return "\n".join(texts)


def _call(block: ToolCallBlock) -> dict[str, object]:
    given = {} if block.tool_call_id is None else {"id": block.tool_call_id}
    return {"name": block.tool_name, "arguments": block.tool_kwargs, **given}
