"""LangChain messages to and from the engine's."""

import json
import uuid
from collections.abc import Collection, Sequence

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolMessage,
    get_notification_metadata,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.utils.json import parse_partial_json

from deltamem_agents import Message, MessageError, Role, Turn, as_messages, check_tool_messages

HANDLE = "delta_mem"
"""Where a reply carries its session and snapshot, in `response_metadata`."""
CALLS = {"tool_call", "tool_call_chunk", "tool_use", "function_call", "invalid_tool_call"}
"""Content blocks that say again what `tool_calls` says."""
TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "text-plain": "text", "refusal": "refusal"}
"""Content blocks that hold text, and where."""
SUMMARY = "summarization"
"""LangChain's mark of its summaries."""


def summaries(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """LangChain's summaries of what was said before, which belong in front of it.

    The last message is what is to be replied to, whatever it is.
    """
    return [m for m in messages[:-1] if not is_typed(m) and m.additional_kwargs["lc_source"] == SUMMARY]


def is_typed(message: BaseMessage) -> bool:
    """Whether somebody said this, or part of it: what a harness adds in a human's name is marked by its source.

    `merge_message_runs` joins such a message with what the human says, keeps the mark, and leaves no seam: then all of
    it is taken for the human's, so that nothing of theirs is lost. What it makes has all fields set but its type.
    """
    if not isinstance(message, HumanMessage) or get_notification_metadata(message) is None:
        return True
    return "response_metadata" in message.model_fields_set and "type" not in message.model_fields_set


def in_system_prompt(messages: Sequence[Message], texts: Sequence[str]) -> list[Message]:
    """Messages with texts at the end of the system prompt, which is shown and never written; made if there is none."""
    if not texts:
        return list(messages)
    head = [m for m in messages[:1] if m.role == "system"]
    content = "\n\n".join([*(m.content for m in head), *texts])
    return [Message(role="system", content=content), *messages[len(head) :]]


def to_engine(messages: Sequence[BaseMessage], *, whole: bool = False) -> list[Message]:
    """Converts LangChain messages; ids and our own handles come along, so that the engine knows what it has seen.

    Args:
        messages: the messages.
        whole: whether there is nothing but these messages; then an answer of a tool needs its call among them.

    Raises:
        MessageError: names a message of a kind, or with content, that a text model cannot take; a tool's answer
            without its call; no messages.
    """
    names: dict[str, str] = {}
    said: list[dict[str, object]] = []
    for position, message in enumerate(messages):
        past = any(isinstance(later, AIMessage) for later in messages[position:])
        plain: dict[str, object] = {"role": _role(position, message), "content": _text(position, message, past=past)}
        plain |= {"id": message.id, "absorb": is_typed(message)}
        if isinstance(message, AIMessage):
            plain |= _calls(message, str(plain["content"]))
            plain["snapshot"] = _snapshot(message)
            names |= {call["id"]: call["name"] for call in message.tool_calls if call["id"]}
        if isinstance(message, ToolMessage):
            plain["tool_call_id"] = message.tool_call_id
            plain["name"] = message.name or names.get(message.tool_call_id)
        said.append(plain)
    converted = as_messages(said)
    if whole:
        broken = {call["id"] for m in messages if isinstance(m, AIMessage) for call in m.invalid_tool_calls}
        check_tool_messages([m for m in converted if m.role != "tool" or m.tool_call_id not in broken])
    return converted


def reply_message(turn: Turn, metadata: dict[str, object], *, forced: bool) -> AIMessage:
    """A turn's reply as LangChain's message. `forced`: the reply had to be a tool call."""
    reply = turn.reply
    return AIMessage(
        content=reply.content,
        tool_calls=[tool_call(name=call.name, args=call.arguments, id=call.id) for call in reply.tool_calls],
        invalid_tool_calls=_cut_off(turn) if forced else [],
        response_metadata=metadata,
        usage_metadata=usage(turn),
    )


def last_chunk(turn: Turn, metadata: dict[str, object], *, forced: bool) -> AIMessageChunk:
    """What a stream says after its text: the tool calls, and what a turn did."""
    calls = [
        tool_call_chunk(name=call.name, args=json.dumps(call.arguments, ensure_ascii=False), id=call.id, index=index)
        for index, call in enumerate(turn.reply.tool_calls)
    ]
    for broken in _cut_off(turn) if forced else []:
        if not _may_be_arguments(broken["args"]):  # LangChain would mend the text and make a call of it
            calls.append(tool_call_chunk(name=None, args=broken["args"], id=broken["id"], index=0))
    return AIMessageChunk(
        content="",
        tool_call_chunks=calls,
        response_metadata=metadata,
        usage_metadata=usage(turn),
        chunk_position="last",
    )


def usage(turn: Turn) -> UsageMetadata:
    """Tokens of a turn."""
    tokens = turn.usage
    return UsageMetadata(
        input_tokens=tokens.prompt_tokens,
        output_tokens=tokens.completion_tokens,
        total_tokens=tokens.total_tokens,
        input_token_details={"cache_read": tokens.cached_tokens},
    )


def _cut_off(turn: Turn) -> list[InvalidToolCall]:
    """The call that a reply had to be, where it is none: mostly there was no room for it."""
    if turn.reply.tool_calls:
        return []
    error = (
        f"the reply of {turn.usage.completion_tokens} tokens is no tool call (finish reason {turn.finish_reason!r}): "
        "if it was cut off, raise max_new_tokens or leave out what stops it"
    )
    return [invalid_tool_call(name=None, args=turn.reply.content, id=f"call_{uuid.uuid4().hex[:24]}", error=error)]


def _may_be_arguments(text: str | None) -> bool:
    """Whether a text can be read as the beginning of a JSON object."""
    try:
        return isinstance(parse_partial_json(text or ""), dict)
    except ValueError:
        return False


def _role(position: int, message: BaseMessage) -> Role:
    kinds: tuple[tuple[type[BaseMessage], Role], ...] = (
        (HumanMessage, "user"),
        (AIMessage, "assistant"),
        (SystemMessage, "system"),
        (ToolMessage, "tool"),
    )
    for kind, role in kinds:
        if isinstance(message, kind):
            return role
    raise MessageError(
        f"message {position} is a {type(message).__name__}: expected a human, AI, system or tool message"
    )


def _text(position: int, message: BaseMessage, *, past: bool) -> str:
    """The text of a message. `past`: it has been replied to, or is a reply; then what is no text is passed over."""
    if isinstance(message.content, str):
        return message.content
    texts = []
    for block in message.content:
        kind = "text" if isinstance(block, str) else block.get("type")
        text = block if isinstance(block, str) else block.get(TEXTS.get(str(kind), ""))
        if isinstance(text, str):
            texts.append(text)
        elif isinstance(message, AIMessage) and kind in CALLS and not isinstance(block, str):
            _check_call(position, block.get("id") or block.get("call_id"), message)
        elif not past:
            found = f"a block of type {kind!r}" + (f" whose text is {text!r}" if kind in TEXTS else "")
            raise MessageError(f"message {position} holds {found}: this is a text model, expected text blocks")
    return "\n".join(texts)


def _check_call(position: int, id: object, message: AIMessage) -> None:
    known: Collection[object] = {call["id"] for call in (*message.tool_calls, *message.invalid_tool_calls)}
    if id not in known:
        raise MessageError(
            f"message {position} holds a tool call, id {id!r}, in its content that is not among its tool_calls "
            f"({', '.join(map(str, known)) or 'none'}): name it there"
        )


def _calls(message: AIMessage, content: str) -> dict[str, object]:
    """The tool calls, and the text with what was meant to be one."""
    calls: list[dict[str, object]] = [
        {"name": call["name"], "arguments": call["args"], **({"id": call["id"]} if call["id"] else {})}
        for call in message.tool_calls
    ]
    broken = [call["args"] for call in message.invalid_tool_calls if call["args"] and call["args"] not in content]
    return {"tool_calls": calls, "content": "\n".join(part for part in (content, *broken) if part)}


def _snapshot(message: AIMessage) -> str | None:
    """Our handle. Whether it is one of the session's own the engine knows: a fork has its parent's, nobody else has."""
    handle = message.response_metadata.get(HANDLE)
    return str(handle["snapshot"]) if isinstance(handle, dict) and handle.get("snapshot") else None
