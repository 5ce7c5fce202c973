"""LangChain messages to and from the engine's."""

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from deltamem_agents import MessageError, MessageLike, Role

HANDLE = "delta_mem"
"""Where a reply carries its session and snapshot, in `response_metadata`."""


def to_engine(messages: Sequence[BaseMessage]) -> list[MessageLike]:
    """Converts LangChain messages; ids and our own handles come along, so that the engine knows what it has seen.

    Raises:
        MessageError: names a message of a kind, or with content, that a text model cannot take.
    """
    return [
        {"role": _role(position, message), "content": _text(position, message), "id": _id(message)}
        for position, message in enumerate(messages)
    ]


def _role(position: int, message: BaseMessage) -> Role:
    kinds: tuple[tuple[type[BaseMessage], Role], ...] = (
        (HumanMessage, "user"),
        (AIMessage, "assistant"),
        (SystemMessage, "system"),
        (ToolMessage, "tool"),
    )
    if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
        raise MessageError(f"message {position} calls tools: ChatDeltaMem has no tool calling yet, expected text alone")
    for kind, role in kinds:
        if isinstance(message, kind):
            return role
    raise MessageError(
        f"message {position} is a {type(message).__name__}: expected a human, AI, system or tool message"
    )


def _text(position: int, message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(str(block["text"]))
        else:
            raise MessageError(
                f"message {position} holds a block of type {block.get('type')!r}: this is a text model, expected text "
                "blocks"
            )
    return "\n".join(texts)


def _id(message: BaseMessage) -> str | None:
    handle = message.response_metadata.get(HANDLE)
    if isinstance(handle, dict) and handle.get("snapshot"):
        return str(handle["snapshot"])
    return message.id
