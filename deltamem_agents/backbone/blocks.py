"""What a chat template is given: each message as it is, or a list mended for templates that want roles to alternate.

Gemma's and Mistral's templates refuse a system prompt, or neighbours of one role, or an answer in front. Windows,
absorbed messages and summaries are no well-formed conversations, so the list is mended before it is rendered.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deltamem_agents.config import Role
from deltamem_agents.messages import Message

MARKS = re.compile("\ue000(\\d+)\ue001")
"""What `mark` makes."""
SEPARATOR = "\n\n"
"""Between messages that are joined into one."""


@dataclass(frozen=True, slots=True)
class Block:
    """One message as the template is given it: one of the caller's, or neighbours joined."""

    message: Message
    """Role and tool calls; the content of the first part."""
    owners: tuple[int | None, ...]
    """Which of the caller's messages the parts are; None for what was added."""
    texts: tuple[str, ...]
    """The parts' contents."""

    @classmethod
    def of(cls, owner: int | None, message: Message) -> "Block":
        """A message as it is."""
        return cls(message, (owner,), (message.content,))

    def joined(self, other: "Block") -> "Block":
        """This block, and another one's parts behind."""
        return Block(self.message, self.owners + other.owners, self.texts + other.texts)

    @property
    def whole(self) -> Message:
        """The message for the template."""
        if len(self.texts) == 1:
            return self.message
        return self.message.model_copy(update={"content": SEPARATOR.join(self.texts)})

    def marked(self, first: int) -> Message:
        """The same with marks, numbered from `first` on, behind its parts.

        They stand before trailing space, which some templates strip. Calls come after the content, which is often empty
        and then left out: there the mark is behind the last one's name.
        """
        if self.message.tool_calls:
            *calls, last = self.message.tool_calls
            last = last.model_copy(update={"name": f"{last.name}{mark(first)}"})
            return self.message.model_copy(update={"tool_calls": (*calls, last)})
        bare = [text.rstrip() for text in self.texts]
        parts = zip(bare, self.texts, strict=True)
        marked = (b + mark(first + n) + text[len(b) :] for n, (b, text) in enumerate(parts))
        return self.message.model_copy(update={"content": SEPARATOR.join(marked)})


def mark(number: int) -> str:
    """What shows where the template puts a content's end: private-use characters around a number."""
    return f"\ue000{number}\ue001"


def marked(blocks: Sequence[Block]) -> list[Message]:
    """The messages of blocks, with marks numbered over all of them."""
    found, number = list[Message](), 0
    for block in blocks:
        found.append(block.marked(number))
        number += len(block.texts)
    return found


def alternating(said: Sequence[tuple[int | None, Message]], *, system: bool) -> list[Block]:
    """User and assistant in turns, the user first: neighbours are joined, an empty turn stands where one is missing.

    Args:
        said: the messages with their owners; calls and answers of tools are text already.
        system: whether the template shows a system prompt in front; otherwise it goes into the user's first turn.
    """
    last_said = max((place for place, (_, m) in enumerate(said) if m.role != "system"), default=-1)
    blocks: list[Block] = []
    for place, (owner, message) in enumerate(said):
        before = blocks[-1].message.role if blocks else None
        in_front = system and before in (None, "system") and place < last_said
        role: Role = "user" if message.role == "tool" or (message.role == "system" and not in_front) else message.role
        if role == "assistant" and before in (None, "system"):
            blocks.append(EMPTY_TURN)
        block = Block.of(owner, message.model_copy(update={"role": role}))
        if blocks and blocks[-1].message.role == role:
            blocks[-1] = blocks[-1].joined(block)
        else:
            blocks.append(block)
    return blocks


EMPTY_TURN = Block.of(None, Message(role="user", content=""))
"""The user saying nothing: nobody's message, never written."""
