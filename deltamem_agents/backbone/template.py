"""Chat templates as segments: which tokens of a prompt belong to which message."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from deltamem_agents.errors import MessageError
from deltamem_agents.messages import Message

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

    def render(self, messages: Sequence[Message]) -> list[Segment]:
        """Segments of the conversation, in order, without a generation prompt.

        Raises:
            MessageError: the template refuses these messages.
        """
        if not messages:
            return []
        whole = self._text(messages)
        start = _common_prefix(self._preamble(messages[0]), whole)
        segments = [Segment(self._ids(whole[:start]), None)] if start else []
        for index, end in enumerate([*self._ends(messages, whole), len(whole)]):
            end = max(start, end)
            segments.append(Segment(self._ids(whole[start:end]), index))
            start = end
        return segments

    def generation_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The tokens that open the assistant's reply to `messages`."""
        without, opened = self._text(messages), self._text(messages, add_generation_prompt=True)
        return self._ids(opened[_common_prefix(without, opened) :])

    def _tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _text(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        plain = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, TypeError, ValueError) as error:  # the latter two from Python inside the template
            roles = [m.role for m in messages]
            raise MessageError(f"the model's chat template refuses messages with roles {roles}: {error}") from error
        return str(text)

    def _text_if_accepted(self, messages: Sequence[Message]) -> str:
        """The rendered text, or nothing where the template wants more messages or another order of roles."""
        try:
            return self._text(messages)
        except MessageError:
            return ""

    def _ends(self, messages: Sequence[Message], whole: str) -> list[int]:
        """Where in `whole` each message but the last ends, the markers that close it included.

        A conversation cut after a message shows what closes it. Its text need not be how the whole conversation starts:
        templates strip the thinking from earlier turns, so the end is looked for behind the message's own content.
        """
        marked = [_marked(m) for m in messages]
        parts = self._text_if_accepted(marked).split(MARK)
        texts = [self._text_if_accepted(marked[: n + 1]) for n in range(len(messages) - 1)]
        if len(parts) != len(messages) + 1 or "".join(parts) != whole:  # the mark changed what the template does
            return [_common_prefix(self._text_if_accepted(messages[: n + 1]), whole) for n in range(len(messages) - 1)]
        contents = accumulate(len(part) for part in parts[:-2])
        closings = (text.rpartition(MARK)[2] if MARK in text else "" for text in texts)
        return [end + _common_prefix(closing, whole[end:]) for end, closing in zip(contents, closings, strict=True)]

    def _preamble(self, head: Message) -> str:
        """What the template puts before the first message: a default system prompt, a start token."""
        first = self._text_if_accepted([head])
        for between in ([], [Message(role="assistant", content="ok")]):
            before, after = self._text_if_accepted([head, *between]), self._text_if_accepted([head, *between, head])
            again = after[len(before) :]
            if after.startswith(before) and again and first.endswith(again):
                return first[: -len(again)]
        return ""


def _marked(message: Message) -> Message:
    """With the mark behind its content, but before trailing space, which some templates strip."""
    bare = message.content.rstrip()
    return message.model_copy(update={"content": f"{bare}{MARK}{message.content[len(bare) :]}"})


def _common_prefix(a: str, b: str) -> int:
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
