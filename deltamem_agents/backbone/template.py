"""Chat templates as segments: which tokens of a prompt belong to which message."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from deltamem_agents.backbone.blocks import EMPTY_TURN, MARKS, Block, alternating, marked
from deltamem_agents.backbone.boundaries import common_prefix, ends
from deltamem_agents.backbone.calls import HERMES, CallSyntax, hermes_message, hermes_prompt, template_syntax
from deltamem_agents.backbone.controls import Controls
from deltamem_agents.backbone.tools import Tool
from deltamem_agents.errors import MessageError
from deltamem_agents.messages import Message, ToolCall

PROBE = "\ue000"
RECENT = 8
"""The tokens of so many texts are kept: planning, prefill and commit of a turn render much the same."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendered prompt."""

    ids: tuple[int, ...]
    message: int | None
    """Index of the message these tokens belong to, its markers included; None for what the template adds itself."""


@dataclass(frozen=True, slots=True)
class _View:
    """What the template is given, and what it makes of that."""

    blocks: list[Block]
    text: str
    marked: str

    @property
    def shows_all(self) -> bool:
        """Whether no part was dropped silently."""
        return len(set(MARKS.findall(self.marked))) >= sum(len(block.texts) for block in self.blocks)


class ChatTemplate:
    """Renders messages through a tokenizer's chat template, and tells which tokens are whose.

    The tokens are those of transformers' `apply_chat_template` on the same messages. Where the template refuses them or
    drops some, it gets the list with roles that alternate: see `blocks`. Tools, calls and their answers are written by
    the template where it can, and in the style of Hermes where it can't: the tools then stand in the system prompt.
    Control tokens in any of these texts are tokenised as text: see `controls`.

    Raises:
        MessageError: when the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise MessageError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template: set "
                "tokenizer.chat_template, put a chat_template.jinja into its folder, or use an instruction-tuned model"
            )
        self.tokenizer = tokenizer
        self._controls = Controls(self._special)
        self._tokens = lru_cache(maxsize=RECENT)(self._tokenise)

    @cached_property
    def syntax(self) -> CallSyntax:
        """How this model calls tools."""
        return self._own_syntax or HERMES

    @cached_property
    def filler(self) -> int:
        """How many tokens may come in between messages where roles must alternate; 0 where they needn't."""
        answer = Message(role="assistant", content="probe")
        if self._text_if_accepted([answer]):
            return 0
        return 2 * sum(len(s.ids) for s in self.render([answer]) if s.message is None)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, opened: bool = False
    ) -> list[Segment]:
        """Segments of the conversation, in order: one for each message, and what the template adds before or between.

        Args:
            messages: the conversation; it need not be a well-formed one.
            tools: described in the system message in front, or in a segment that is no message's.
            opened: whether what opens the assistant's reply comes last, as a segment that is no message's.

        Raises:
            MessageError: the template refuses these messages.
        """
        if not messages:
            return []
        messages, tools, cut = self._controls.cut(messages, tools)
        own = self._own_tools(tools)
        view = self._view(messages, tools)
        text = view.text
        if opened:
            text = self._text([b.whole for b in view.blocks], own, add_generation_prompt=True)
            if text == view.text and view.blocks[-1].message.role == "assistant":  # nothing would open another answer
                view = self._viewed([*view.blocks, EMPTY_TURN], own)
                text = self._text([b.whole for b in view.blocks], own, add_generation_prompt=True)

        def shown(blocks: Sequence[Block], with_marks: bool) -> str:
            return self._text_if_accepted(marked(blocks) if with_marks else [b.whole for b in blocks], own)

        parts = [(owner, block) for block in view.blocks for owner in block.owners]
        places, closed = ends(view.blocks, view.text, view.marked, shown), common_prefix(view.text, text)
        start = common_prefix(self._preamble(parts[places[0][0]][1].whole, own), text)
        stretches = [(None, start), *((parts[part][0], min(end, closed)) for part, end in places)]
        stretches += [(None, len(text))] if opened else []
        ids = self._split(text, [place for _, place in stretches], cut)
        segments = [Segment(some, owner) for some, (owner, _) in zip(ids, stretches, strict=True)]
        last = segments.pop() if opened else None  # empty where nothing needs to open an answer
        segments = [segment for segment in segments if segment.ids or segment.message is not None]
        return segments if last is None else [*segments, last]

    def generation_prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """The tokens that open the assistant's reply to `messages`."""
        return self.render(messages, tools, opened=True)[-1].ids

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
        return template_syntax(self._text_if_accepted, self._special)

    @property
    def _special(self) -> set[str]:
        """The texts of tokens that no reply and no message has."""
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return added | set(self.tokenizer.all_special_tokens)

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
        given = self._text_if_accepted([Message(role="system", content=PROBE), user])
        before, found, after = given.partition(PROBE)
        if not found:
            return ""
        closing = after.removesuffix(alone[len(preamble) :])
        if preamble.startswith(before) and preamble.endswith(closing) and len(preamble) >= len(before) + len(closing):
            return preamble[len(before) : len(preamble) - len(closing)]
        return ""

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template shows a system prompt in front of a user's message."""
        talk = [Message(role=role, content=f"{role} probe") for role in ("system", "user")]
        return talk[0].content in self._text_if_accepted(talk)

    def _view(self, messages: Sequence[Message], tools: Sequence[Tool]) -> _View:
        """The messages as they are if the template shows them all, else with roles that alternate."""
        own, refusal = self._own_tools(tools), None
        try:
            plain = self._viewed([Block.of(*one) for one in self._spelled(messages, tools)], own)
            if plain.shows_all:
                return plain
        except MessageError as error:
            plain, refusal = None, error
        try:
            said = self._spelled(messages, tools, as_text=True)
            mended = self._viewed(alternating(said, system=self._takes_system), own)
        except MessageError:
            mended = None
        best = mended if mended is not None and (plain is None or mended.shows_all) else plain
        if best is None:
            assert refusal is not None
            raise refusal
        return best

    def _viewed(self, blocks: list[Block], own: Sequence[Tool]) -> _View:
        text = self._text([block.whole for block in blocks], own)
        return _View(blocks, text, self._text_if_accepted(marked(blocks), own))

    def _spelled(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, as_text: bool = False
    ) -> list[tuple[int | None, Message]]:
        """The messages, with their numbers, as the template can show them; tools may need a system prompt in front.

        Args:
            messages: what was said.
            tools: what is described in the system prompt, unless the template does that.
            as_text: whether calls and answers are text in any case.
        """
        said: list[tuple[int | None, Message]] = list(enumerate(messages))
        if not tools and not any(m.tool_calls or m.tool_call_id for m in messages):
            return said
        if self._own_syntax is None or as_text:
            said = [(owner, hermes_message(m)) for owner, m in said]
        if self._own_syntax is not None:
            return said
        if not self._takes_tool_messages:
            said = [
                (owner, m.model_copy(update={"role": "user"}) if messages[owner or 0].tool_call_id is not None else m)
                for owner, m in said
            ]
        if not tools:
            return said
        given = said[0][1].role == "system"
        owner, system = said.pop(0) if given else (None, Message(role="system", content=self._default_system))
        content = "\n\n".join(part for part in (system.content, hermes_prompt(tools)) if part)
        return [(owner, Message(role="system", content=content)), *said]

    def _own_tools(self, tools: Sequence[Tool]) -> tuple[Tool, ...]:
        """The tools that the template itself describes."""
        return tuple(tools) if tools and self._own_syntax is not None else ()

    def _split(self, text: str, places: Sequence[int], cut: str) -> list[tuple[int, ...]]:
        """The tokens of a text, split at places in it. A token that reaches over a place belongs before it.

        Args:
            text: with a character in each control token that is to stay text.
            places: in the text, those characters counted.
            cut: that character; empty: there is none.
        """
        places = list(accumulate(places, max))
        if not self.tokenizer.is_fast:
            parts = (text[start:end] for start, end in zip([0, *places], places, strict=False))
            return [
                tuple(i for piece in _pieces(part, cut) for i in self.tokenizer.encode(piece, add_special_tokens=False))
                for part in parts
            ]
        ids, starts = self._tokens(text, cut)
        cuts = [len(ids) if place == len(text) else bisect_left(starts, place) for place in places]
        return [ids[start:end] for start, end in zip([0, *cuts], cuts, strict=False)]

    def _tokenise(self, text: str, cut: str) -> tuple[tuple[int, ...], list[int]]:
        """The tokens of a text, and where each begins."""
        ids, starts, at = list[int](), list[int](), 0
        for piece in _pieces(text, cut):
            found = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids += found["input_ids"]
            starts += [at + start for start, _ in found["offset_mapping"]]
            at += len(piece) + len(cut)
        return tuple(ids), list(accumulate(starts, max))

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


def _pieces(text: str, cut: str) -> list[str]:
    return text.split(cut) if cut else [text]


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
