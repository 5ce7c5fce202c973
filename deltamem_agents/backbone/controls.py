"""Control tokens in what was said stay text: a message cannot end its own turn, nor begin another's.

Chat templates give text, and in it nobody can tell a marker of the template from one that stood in a message. So each
control token in a message, a call or a tool is cut before the template sees it: a character that occurs nowhere else is
put behind its first one, and the text is tokenised in pieces between those characters, which are dropped.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence

from pydantic import JsonValue

from deltamem_agents.backbone.tools import Tool
from deltamem_agents.messages import Message, ToolCall

CUTS = range(0xE100, 0xF900)
"""Private-use characters of which one is taken."""
Change = Callable[[str], str]


class Controls:
    """The control tokens of a tokenizer.

    Args:
        texts: as they are written. What is one character can't be cut, and is left alone.
    """

    def __init__(self, texts: Collection[str]) -> None:
        longest_first = sorted((text for text in set(texts) if len(text) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def cut(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Tool], str]:
        """Messages and tools in which no control token is whole, and the character that stands in each.

        Where there is none to cut, they are as given, and the character is empty.
        """
        if not any(self._pattern.search(text) for text in _texts(messages, tools)):
            return list(messages), list(tools), ""
        used = set().union(*_texts(messages, tools))
        character = next(one for one in map(chr, CUTS) if one not in used)

        def apart(text: str) -> str:
            while self._pattern.search(text):  # what is left of one may be another
                text = self._pattern.sub(lambda found: f"{found[0][0]}{character}{found[0][1:]}", text)
            return text

        return [_message(m, apart) for m in messages], [_tool(tool, apart) for tool in tools], character


def _texts(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[str]:
    for message in messages:
        yield from (message.content, message.tool_call_id or "", message.name or "")
        for call in message.tool_calls:
            yield from (call.name, call.id, *_strings(call.arguments))
    for tool in tools:
        yield from (tool.description, *_strings(tool.parameters))


def _strings(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _message(message: Message, change: Change) -> Message:
    calls = (
        ToolCall.model_construct(name=change(call.name), id=change(call.id), arguments=_object(call.arguments, change))
        for call in message.tool_calls
    )
    named = {key: change(text) for key in ("tool_call_id", "name") if (text := getattr(message, key)) is not None}
    return message.model_copy(update={"content": change(message.content), "tool_calls": tuple(calls), **named})


def _tool(tool: Tool, change: Change) -> Tool:
    parameters = _object(tool.parameters, change)
    return tool.model_copy(update={"description": change(tool.description), "parameters": parameters})


def _object(value: dict[str, JsonValue], change: Change) -> dict[str, JsonValue]:
    return {change(key): _changed(inner, change) for key, inner in value.items()}


def _changed(value: JsonValue, change: Change) -> JsonValue:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return _object(value, change)
    return [_changed(inner, change) for inner in value] if isinstance(value, list) else value
