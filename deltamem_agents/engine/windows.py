"""Where a session's window starts: a turn boundary that the ledger alone decides, moving in blocks."""

import math
from dataclasses import dataclass

from deltamem_agents.messages import Message
from deltamem_agents.store import Snapshot, StateStore


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a session's line that is in the prompt."""

    start: Snapshot | None
    """The snapshot at the window's start, with its state; None: the start of the line, where the state is zero."""
    turns: tuple[Snapshot, ...]
    """The turns since, oldest first."""

    @property
    def position(self) -> int:
        """How many messages of the line lie before the window."""
        return self.start.messages if self.start else 0

    @property
    def start_id(self) -> str | None:
        """Id of the snapshot at the start."""
        return self.start.id if self.start else None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages of the window."""
        texts = (entry.text for turn in self.turns for entry in turn.entries)
        return tuple(Message.model_validate_json(text) for text in texts if text is not None)


def block_start(count: int, recent: int) -> int:
    """The first message of a window over `count` messages that keeps between `recent` and 2·`recent` of them."""
    return count if recent == 0 else max(0, (count // recent - 1) * recent)


def load_window(
    store: StateStore, head: Snapshot | None, *, recent: int, room: int, new: int = 0, answers: bool = False
) -> Window:
    """The window of a line, in front of new messages.

    Args:
        store: where the line is.
        head: its head, None for an empty line.
        recent: keep between this many and twice as many messages.
        room: window and new messages take at most this many tokens.
        new: how many tokens the new messages take.
        answers: whether the first new message is a tool's result, which stays with the call before it.
    """
    if head is None:
        return Window(None, ())
    start = store.boundary(head.id, block_start(head.messages, recent))
    turns = store.line(head.id, since=start.messages if start else 0)
    while start is not None and (_answers(turns[0]) if turns else answers):
        start = store.boundary(head.id, start.messages - 1)
        turns = store.line(head.id, since=start.messages if start else 0)
    skip = _turns_to_skip(start.tokens if start else 0, turns, room, new)
    for number, turn in enumerate(turns, 1):
        if any(entry.text is None for entry in turn.entries):  # the transcript policy dropped it
            skip = max(skip, number)
    while 0 < skip < len(turns) and _answers(turns[skip]):
        skip += 1
    if skip:
        start = store.snapshot(turns[skip - 1].id)
    return Window(start, tuple(turns[skip:]))


def _answers(turn: Snapshot) -> bool:
    return turn.entries[0].role == "tool"


def _turns_to_skip(before: int, turns: list[Snapshot], room: int, new: int) -> int:
    """How many turns must go so that the rest fits; the start moves in quarters of the room, not at every turn.

    Tokens are counted from the line's beginning, and new messages as if they were on it already: so the start depends
    on nothing else, and never moves back while the room stays the same.
    """
    ends = [before, *(turn.tokens for turn in turns)]
    needed = ends[-1] + new - room
    block = max(1, room // 4)
    target = math.ceil(needed / block) * block
    enough = [number for number, end in enumerate(ends) if end >= needed]
    return max((number for number in enough if ends[number] <= target), default=min(enough, default=len(turns)))
