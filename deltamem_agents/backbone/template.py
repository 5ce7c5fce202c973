"""Chat templates as segments: which tokens of a prompt belong to which message."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from deltamem_agents.backbone.calls import HERMES, CallSyntax, hermes_message, hermes_prompt, template_syntax
from deltamem_agents.backbone.tools import Tool
from deltamem_agents.errors import MessageError
from deltamem_agents.messages import Message, ToolCall

MARK = "\ue000"  # a private-use character: put behind each content, it shows where the template puts the content's end


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendered prompt."""

    ids: tuple[int, ...]
    message: int | None
    """Index of the message these tokens belong to, its markers included; None for what the template adds itself."""


class ChatTemplate:
    """Renders messages through a tokenizer's chat template, a segment a message.

    Each segment is tokenised by itself, so that a longer conversation starts with the very tokens of a shorter one.
    Tools, calls and their answers are written by the template where it can, and in the style of Hermes where it can't:
    the tools then stand in the system prompt.

    Raises:
        MessageError: when the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise MessageError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template: set "
                "tokenizer.chat_template, or use an instruction-tuned model"
            )
        self.tokenizer = tokenizer
        self._ids = lru_cache(maxsize=4096)(self._tokenise)

    @cached_property
    def syntax(self) -> CallSyntax:
        """How this model calls tools."""
        return self._own_syntax or HERMES

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[Segment]:
        """Segments of the conversation, in order, without a generation prompt.

        The description of `tools` belongs to the system message in front, or to no message.

        Raises:
            MessageError: the template refuses these messages.
        """
        if not messages:
            return []
        spelled, own = self._spelled(messages, tools), self._own_tools(tools)
        added = len(spelled) - len(messages)
        whole = self._text(spelled, own)
        start = _common_prefix(self._preamble(spelled[0], own), whole)
        segments = [Segment(self._ids(whole[:start]), None)] if start else []
        for index, end in enumerate([*self._ends(spelled, whole, own), len(whole)]):
            end = max(start, end)
            segments.append(Segment(self._ids(whole[start:end]), index - added if index >= added else None))
            start = end
        return segments

    def generation_prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """The tokens that open the assistant's reply to `messages`."""
        spelled, own = self._spelled(messages, tools), self._own_tools(tools)
        without, opened = self._text(spelled, own), self._text(spelled, own, add_generation_prompt=True)
        return self._ids(opened[_common_prefix(without, opened) :])

    def parse_reply(
        self, text: str, tools: Sequence[Tool], *, ids: Sequence[int] = (), opening: Sequence[int] = ()
    ) -> tuple[str, tuple[ToolCall, ...]]:
        """Text and tool calls of a reply. What is no valid call of one of the tools stays text.

        Args:
            text: the reply.
            tools: what could be called.
            ids: the reply's tokens, for tokenizers with a `response_template` of their own.
            opening: the generation prompt before the reply.
        """
        if not tools:
            return text, ()
        if self._own_syntax is not None and ids and getattr(self.tokenizer, "response_template", None):
            try:
                parsed = self.tokenizer.parse_response(
                    list(ids), prefix=str(self.tokenizer.decode(list(opening))), tools=[tool.plain for tool in tools]
                )
                calls = tuple(ToolCall.model_validate(call) for call in parsed.get("tool_calls") or ())
            except (AttributeError, KeyError, TypeError, ValueError):  # whatever the template's patterns ran into
                return text, ()
            if not calls or {call.name for call in calls} - {tool.name for tool in tools}:
                return text, ()
            return str(parsed.get("content") or "").rstrip(), calls
        return self.syntax.parse(text, [tool.name for tool in tools])

    @cached_property
    def _own_syntax(self) -> CallSyntax | None:
        """How the template itself writes calls, if it has tools and does so in a way that can be forced."""
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return template_syntax(self._text_if_accepted, special)

    @cached_property
    def _takes_tool_messages(self) -> bool:
        """Whether the template shows a message of the role tool, between an assistant's."""
        talk = [Message(role=role, content=f"{role} probe") for role in ("user", "assistant", "tool", "assistant")]
        return talk[2].content in self._text_if_accepted(talk)

    @cached_property
    def _default_system(self) -> str:
        """The system prompt that the template gives a conversation without one."""
        user = Message(role="user", content="probe")
        preamble, alone = self._preamble(user), self._text_if_accepted([user])
        given = self._text_if_accepted([Message(role="system", content=MARK), user])
        before, _, after = given.partition(MARK)
        closing = after.removesuffix(alone[len(preamble) :])
        if preamble.startswith(before) and preamble.endswith(closing) and len(preamble) >= len(before) + len(closing):
            return preamble[len(before) : len(preamble) - len(closing)]
        return ""

    def _spelled(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """The messages as the template can show them; one more in front where tools need a system prompt."""
        if not tools and not any(m.tool_calls or m.tool_call_id for m in messages):
            return list(messages)
        if self._own_syntax is not None:
            return list(messages)
        spelled = [hermes_message(m) for m in messages]
        if not self._takes_tool_messages:
            answers = [m.tool_call_id is not None for m in messages]
            spelled = [m.model_copy(update={"role": "user"}) if a else m for m, a in zip(spelled, answers, strict=True)]
        if not tools:
            return spelled
        given = spelled[0].role == "system"
        system = spelled.pop(0).content if given else self._default_system
        content = "\n\n".join(part for part in (system, hermes_prompt(tools)) if part)
        return [Message(role="system", content=content), *spelled]

    def _own_tools(self, tools: Sequence[Tool]) -> tuple[Tool, ...]:
        """The tools that the template itself describes."""
        return tuple(tools) if tools and self._own_syntax is not None else ()

    def _tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _text(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, add_generation_prompt: bool = False
    ) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                [_plain(m) for m in messages],  # type: ignore[arg-type] # tool calls are lists, as its documentation says
                tools=[tool.plain for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (TemplateError, TypeError, ValueError) as error:  # the latter two from Python inside the template
            roles = [m.role for m in messages]
            raise MessageError(f"the model's chat template refuses messages with roles {roles}: {error}") from error
        return str(text)

    def _text_if_accepted(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """The rendered text, or nothing where the template wants more messages or another order of roles."""
        try:
            return self._text(messages, tools)
        except MessageError:
            return ""

    def _ends(self, messages: Sequence[Message], whole: str, tools: Sequence[Tool]) -> list[int]:
        """Where in `whole` each message but the last ends, the markers that close it included.

        A conversation cut after a message shows what closes it. Its text need not be how the whole conversation starts:
        templates strip the thinking from earlier turns, so the end is looked for behind the message's own content.
        """
        marked = [_marked(m) for m in messages]
        parts = self._text_if_accepted(marked, tools).split(MARK)
        texts = [self._text_if_accepted(marked[: n + 1], tools) for n in range(len(messages) - 1)]
        if len(parts) != len(messages) + 1 or "".join(parts) != whole:  # the mark changed what the template does
            cut = (self._text_if_accepted(messages[: n + 1], tools) for n in range(len(messages) - 1))
            return [_common_prefix(text, whole) for text in cut]
        contents = accumulate(len(part) for part in parts[:-2])
        closings = (text.rpartition(MARK)[2] if MARK in text else "" for text in texts)
        return [end + _common_prefix(closing, whole[end:]) for end, closing in zip(contents, closings, strict=True)]

    def _preamble(self, head: Message, tools: Sequence[Tool] = ()) -> str:
        """What the template puts before the first message: a default system prompt, a start token."""
        first = self._text_if_accepted([head], tools)
        reply, user = Message(role="assistant", content="ok"), Message(role="user", content="ok")
        for between in ([], [reply], [reply, user]):  # some templates treat neighbours, or the last reply, specially
            before, after = (self._text_if_accepted([head, *between, *more], tools) for more in ([], [head]))
            again = after[len(before) :]
            if after.startswith(before) and again and first.endswith(again):
                return first[: -len(again)]
        return ""


def _plain(message: Message) -> dict[str, object]:
    """A message as chat templates expect it."""
    plain: dict[str, object] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    answer = {"tool_call_id": message.tool_call_id, "name": message.name}
    return plain | {key: value for key, value in answer.items() if value is not None}


def _marked(message: Message) -> Message:
    """With the mark behind its content, but before trailing space, which some templates strip.

    Calls come after the content, which is often empty and then left out: the mark is behind the last one's name.
    """
    if message.tool_calls:
        *calls, last = message.tool_calls
        last = last.model_copy(update={"name": f"{last.name}{MARK}"})
        return message.model_copy(update={"tool_calls": (*calls, last)})
    bare = message.content.rstrip()
    return message.model_copy(update={"content": f"{bare}{MARK}{message.content[len(bare) :]}"})


def _common_prefix(a: str, b: str) -> int:
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
