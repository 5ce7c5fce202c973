"""Chat templates as segments: which tokens of a prompt belong to which message."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from deltamem_agents.errors import MessageError
from deltamem_agents.messages import Message


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
        texts = [self._text(messages[: n + 1]) for n in range(len(messages))]
        whole = texts[-1] if texts else ""
        segments: list[Segment] = []
        start = 0
        if messages:
            start = len(self._preamble(messages, texts[0]))
            if start:
                segments.append(Segment(self._ids(whole[:start]), None))
        for index, text in enumerate(texts):
            end = len(whole) if index == len(texts) - 1 else max(start, _common_prefix(text, whole))
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
        except TemplateError as error:
            roles = [m.role for m in messages]
            raise MessageError(f"the model's chat template refuses messages with roles {roles}: {error}") from error
        return str(text)

    def _preamble(self, messages: Sequence[Message], first: str) -> str:
        """What the template puts before the first message: a default system prompt, a start token."""
        head = messages[0]
        for between in ([], [Message(role="assistant", content="ok")]):
            try:
                before, after = self._text([head, *between]), self._text([head, *between, head])
            except MessageError:  # the template wants another order of roles
                continue
            again = after[len(before) :]
            if after.startswith(before) and again and first.endswith(again):
                return first[: -len(again)]
        return ""


def _common_prefix(a: str, b: str) -> int:
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
