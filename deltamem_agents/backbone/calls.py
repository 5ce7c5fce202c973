"""How tool calls look in a model's text: found out from its chat template, or in the style of Hermes."""

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from deltamem_agents.backbone.tools import Tool
from deltamem_agents.messages import Message, ToolCall


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """A call is `opening` name `middle` arguments `closing`; arguments are JSON."""

    opening: str
    middle: str
    closing: str
    between: str | None
    """What stands between two calls; None where a reply holds one at most."""

    @property
    def trigger(self) -> str:
        """The text that shows that a call begins."""
        return self.opening.partition("{")[0].strip() or self.opening

    def text(self, calls: Sequence[ToolCall]) -> str:
        """Calls, as the model would say them."""
        said = (self.opening + c.name + self.middle + _json(c.arguments) + self.closing for c in calls)
        return (self.between or "").join(said)

    def parse(self, reply: str, names: Collection[str]) -> tuple[str, tuple[ToolCall, ...]]:
        """Text and calls of a reply. What is no valid call of one of the tools named stays text."""
        marker, tail = self.opening.partition("{")[0].strip(), self.closing.lstrip("}").strip()
        name_key, arguments_key = _key(self.opening), _key(self.middle)
        content, calls, at = "", list[ToolCall](), 0
        while (found := reply.find(marker or "{", at)) >= 0:
            content += reply[at:found]
            start = re.compile(r"\s*").match(reply, found + len(marker)).end()  # type: ignore[union-attr]
            call, end = _read(reply, start, name_key, arguments_key)
            if call is None or call.name not in names:
                at = found + len(marker or "{")
                content += reply[found:at]
                continue
            calls.append(call)
            content = content.rstrip()
            rest = reply[end:].lstrip()
            at = len(reply) - len(rest) + len(tail) if tail and rest.startswith(tail) else end
        content += reply[at:]
        return (content.rstrip(), tuple(calls)) if calls else (reply, ())


HERMES = CallSyntax('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n")
"""What many open models have learnt, and what the others are told."""


def hermes_prompt(tools: Sequence[Tool]) -> str:
    """Describes tools and the syntax of calls, for a system prompt."""
    lines = "\n".join(_json(tool.plain) for tool in tools)
    return (
        "# Tools\n\nYou can call these functions, given as JSON:\n"
        f"<tools>\n{lines}\n</tools>\n\n"
        "To call one, reply with its name and arguments as JSON, like this:\n"
        '<tool_call>\n{"name": <function name>, "arguments": <arguments as a JSON object>}\n</tool_call>'
    )


def hermes_message(message: Message) -> Message:
    """A message with its calls, or a tool's answer to a call, as text alone."""
    content = message.content
    if message.tool_calls:
        content = "\n".join(part for part in (content, HERMES.text(message.tool_calls)) if part)
    elif message.tool_call_id is not None:
        content = f"<tool_response>\n{content}\n</tool_response>"
    return Message(role=message.role, content=content)


PROBE_TOOL = Tool(
    name="probe_tool",
    description="Probes a template.",
    parameters={"type": "object", "properties": {"p": {"type": "integer"}}},
)


def template_syntax(text: Callable[..., str], special: Collection[str]) -> CallSyntax | None:
    """Finds out how a chat template writes calls.

    Args:
        text: renders messages, with `tools=` if any; empty where the template refuses.
        special: texts of special tokens. They never show in a reply's text, so a syntax with them is not understood.

    Returns:
        The syntax; None if the template has no tools, or writes calls in another way than as a name and JSON arguments.
    """
    user, mark = Message(role="user", content="probe"), "\ue001"
    calls = tuple(ToolCall(name=f"probe_{n}", arguments={"p": n, "q": [n, n]}, id=f"probe{n}idx") for n in (1, 2))
    plain = text([user, Message(role="assistant", content=mark)])
    one = text([user, Message(role="assistant", content="", tool_calls=calls[:1])])
    two = text([user, Message(role="assistant", content="", tool_calls=calls)])
    answer = Message(role="tool", content=mark, tool_call_id=calls[0].id, name=calls[0].name)
    answered = text([user, Message(role="assistant", content="", tool_calls=calls[:1]), answer])
    described = text([user], tools=(PROBE_TOOL,))
    if mark not in answered or PROBE_TOOL.name not in described or PROBE_TOOL.description not in described:
        return None
    head, _, foot = plain.partition(mark)
    if not (mark in plain and one.startswith(head) and one.endswith(foot)):
        return None
    opening, name, rest = one[len(head) : len(one) - len(foot)].partition(calls[0].name)
    middle, arguments, closing = rest.partition(_json(calls[0].arguments))
    keys = _key(opening) and _key(middle)
    if not (name and arguments and keys) or "probe1idx" in one or any(s in opening + middle + closing for s in special):
        return None
    said = two[len(head) : len(two) - len(foot)] if two.startswith(head) and two.endswith(foot) else ""
    first, _, second = said.partition(calls[1].name)
    start, end = opening + name + middle + arguments + closing, first.removesuffix(opening)
    parallel = second and first.endswith(opening) and end.startswith(start)
    return CallSyntax(opening, middle, closing, end[len(start) :] if parallel else None)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _key(before: str) -> str:
    """The JSON key that `before` ends with."""
    found = re.search(r'"(\w+)": ?"?$', before)
    return found[1] if found else ""


def _read(reply: str, start: int, name_key: str, arguments_key: str) -> tuple[ToolCall | None, int]:
    try:
        said, end = json.JSONDecoder().raw_decode(reply, start)
        if isinstance(said, dict) and said.keys() == {name_key, arguments_key}:
            return ToolCall(name=said[name_key], arguments=said[arguments_key]), end
    except (json.JSONDecodeError, ValidationError, RecursionError):
        pass
    return None, start
