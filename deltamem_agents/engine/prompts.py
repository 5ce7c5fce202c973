"""Prompts as pieces: which tokens a turn feeds, and which of them are written."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deltamem_agents.backbone.spans import sentence_spans
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.backbone.tools import Tool
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.generation import Piece
from deltamem_agents.messages import Message


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as pieces, and how many tokens each message takes."""

    pieces: tuple[Piece, ...]
    lengths: tuple[int, ...]
    """Tokens of each message, its markers included."""
    opening: Piece | None = None
    """The last piece, where it opens the reply."""

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids, in order."""
        return tuple(itertools.chain.from_iterable(p.ids for p in self.pieces))


class PromptWriter:
    """Renders conversations for one model: messages of the absorbed roles are written, everything else is read past."""

    def __init__(self, template: ChatTemplate, config: DeltaMemConfig) -> None:
        self.template, self.config = template, config

    def render(
        self,
        shown: Sequence[Message],
        spoken: Sequence[Message],
        *,
        write: bool,
        tools: Sequence[Tool] = (),
        opened: bool = False,
    ) -> Rendered:
        """Pieces of `shown`, never written, then `spoken`, written where their role is absorbed and `write` is on.

        With `opened` the last piece opens the reply; where replies are written as they come, it is part of the reply.
        """
        messages = [message.as_shown for message in (*shown, *spoken)]
        pieces, lengths = [], [0] * len(messages)
        for segment in self.template.render(messages, tools, opened=opened):
            on = write and segment.message is not None and segment.message >= len(shown)
            on = on and self.writes(messages[segment.message or 0])
            pieces.append(Piece(segment.ids, on, self._spans(segment.ids) if on and self.config.spans else None))
            if segment.message is not None:
                lengths[segment.message] += len(segment.ids)
        if opened:
            pieces[-1] = Piece(pieces[-1].ids, write and self.writes_replies)
        return Rendered(tuple(pieces), tuple(lengths), pieces[-1] if opened else None)

    @property
    def writes_replies(self) -> bool:
        """Whether a reply is written as it is generated; span writes happen when the message is over."""
        return "assistant" in self._roles and not self.config.spans

    def writes(self, message: Message) -> bool:
        """Whether a spoken message goes into the memory."""
        return message.absorb and message.role in self._roles

    @property
    def _roles(self) -> Collection[str]:
        return self.config.absorb_roles

    def _spans(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        if self.config.write_granularity == "message_mean":
            return (0,) * len(ids)
        return sentence_spans([str(self.template.tokenizer.decode([i])) for i in ids])


def remainder(pieces: Sequence[Piece], fed: int) -> list[Piece]:
    """What is left of `pieces` once their first `fed` tokens are in the KV cache."""
    rest = []
    for piece in pieces:
        skip = min(fed, len(piece.ids))
        fed -= skip
        if skip < len(piece.ids):
            rest.append(Piece(piece.ids[skip:], piece.write, piece.spans[skip:] if piece.spans else None))
    return rest


def in_groups(lengths: Sequence[int], room: int) -> list[int]:
    """Splits messages that cannot all fit at once into consecutive groups that do: the size of each group."""
    groups, filled = [0], 0
    for length in lengths:
        if filled + length > room:
            groups.append(0)
            filled = 0
        groups[-1] += 1
        filled += length
    return groups
