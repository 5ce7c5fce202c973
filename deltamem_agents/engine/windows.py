"""The window of a thread: its recent messages, replayed from a snapshot where possible, moving in blocks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deltamem_agents.messages import Message
from deltamem_agents.store import Snapshot, StateStore


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a thread that is in the prompt. Positions are counted in the thread's own messages."""

    start: Snapshot | None
    """The snapshot that the prompt is replayed from, with its state; None: the start of the line, where it is zero."""
    earlier: tuple[Snapshot, ...]
    """Turns that are shown and not replayed: other threads have written since, and replaying would undo them."""
    turns: tuple[Snapshot, ...]
    """The turns since the start, oldest first, which are replayed."""
    position: int = 0
    """How many messages of the thread lie before the window."""
    count: int = 0
    """How many messages the thread has."""
    tokens: int = 0
    """How many tokens these take in a prompt."""

    @property
    def start_id(self) -> str | None:
        """Id of the snapshot at the start."""
        return self.start.id if self.start else None

    @property
    def shown(self) -> tuple[Message, ...]:
        """The messages of the earlier turns."""
        return _messages(self.earlier)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages of the turns since the start."""
        return _messages(self.turns)


def block_start(count: int, recent: int) -> int:
    """The first message of a window over `count` messages that keeps between `recent` and 2·`recent` of them."""
    return count if recent == 0 else max(0, (count // recent - 1) * recent)


def load_window(
    store: StateStore,
    base: Snapshot | None,
    thread: str,
    *,
    recent: int,
    room: int,
    new: int = 0,
    answers: bool = False,
    until: int | None = None,
) -> Window:
    """The window of a thread, in front of new messages.

    Args:
        store: where the line is.
        base: the end of the line; None for an empty one.
        thread: whose turns are shown.
        recent: keep between this many and twice as many messages.
        room: window and new messages take at most this many tokens.
        new: how many tokens the new messages take.
        answers: whether the first new message is a tool's result, which stays with the call before it.
        until: the turns of the thread after this message of it are not shown, and nothing is replayed.
    """
    if base is None:
        return Window(None, (), ())
    thread_end, said = _recent_turns(store, base.id, thread, recent=recent, answers=answers, until=until)
    skip = _turns_to_skip(said, room, new)
    for number, turn in enumerate(said, 1):
        if any(entry.text is None for entry in turn.entries):  # the transcript policy dropped it
            skip = max(skip, number)
    while 0 < skip < len(said) and _answers(said[skip]):
        skip += 1
    said = said[skip:]
    replayed = _replayable(said, base) if until is None else []
    start = replayed[0].parent if replayed else base.id
    count, tokens = (thread_end.thread_messages, thread_end.thread_tokens) if thread_end else (0, 0)
    return Window(
        start=None if start is None else store.snapshot(start),
        earlier=tuple(said[: len(said) - len(replayed)]),
        turns=tuple(replayed),
        position=said[0].thread_start if said else count,
        count=count,
        tokens=tokens,
    )


def _recent_turns(
    store: StateStore, base: str, thread: str, *, recent: int, answers: bool, until: int | None
) -> tuple[Snapshot | None, list[Snapshot]]:
    """The thread's last turn, and its turns from the block's start on; more where a tool's result needs its call."""
    reach = 2 * recent + 4
    while True:
        turns = store.thread(base, thread, last=reach)
        seen = [_cut(turn, until) for turn in turns if until is None or turn.thread_start < until]
        first = block_start(seen[-1].thread_messages if seen else 0, recent)
        begin = sum(turn.thread_messages <= first for turn in seen)
        while begin > 0 and (_answers(seen[begin]) if begin < len(seen) else answers):
            begin -= 1
        reach *= 2
        if begin > 0 or not turns or turns[0].thread_start == 0 or turns == store.thread(base, thread, last=reach):
            return turns[-1] if turns else None, seen[begin:]


def _cut(turn: Snapshot, until: int | None) -> Snapshot:
    """A turn without its messages from thread position `until` on."""
    if until is None or turn.thread_messages <= until:
        return turn
    entries = turn.entries[: until - turn.thread_start]
    tokens = turn.thread_tokens - sum(entry.tokens for entry in turn.entries[len(entries) :])
    return replace(turn, entries=entries, thread_messages=until, thread_tokens=tokens)


def _replayable(said: Sequence[Snapshot], base: Snapshot) -> list[Snapshot]:
    """The turns at the very end of the line, with nothing of other threads in between, that a state lies before."""
    replayed: list[Snapshot] = []
    end = base.messages
    for turn in reversed(said):
        if turn.messages != end:
            break
        replayed.insert(0, turn)
        end = turn.start
    while replayed and replayed[0].parent is None and replayed[0].start > 0:  # the state before it was pruned
        replayed.pop(0)
    return replayed


def _messages(turns: Sequence[Snapshot]) -> tuple[Message, ...]:
    texts = (entry.text for turn in turns for entry in turn.entries)
    return tuple(Message.model_validate_json(text) for text in texts if text is not None)


def _answers(turn: Snapshot) -> bool:
    return turn.entries[0].role == "tool"


def _turns_to_skip(turns: Sequence[Snapshot], room: int, new: int) -> int:
    """How many turns must go so that the rest fits; the start moves in quarters of the room, not at every turn.

    Tokens are counted from the thread's beginning, and new messages as if they were in it already: so the start depends
    on nothing else, and never moves back while the room stays the same.
    """
    if not turns:
        return 0
    before = turns[0].thread_tokens - sum(entry.tokens for entry in turns[0].entries)
    ends = [before, *(turn.thread_tokens for turn in turns)]
    needed = ends[-1] + new - room
    block = max(1, room // 4)
    target = math.ceil(needed / block) * block
    enough = [number for number, end in enumerate(ends) if end >= needed]
    return max((number for number in enough if ends[number] <= target), default=min(enough, default=len(turns)))
