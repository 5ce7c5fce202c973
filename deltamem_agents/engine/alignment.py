"""What is new? Aligning the messages a caller passes with the ledger of a session."""

from collections.abc import Sequence
from dataclasses import dataclass

from deltamem_agents.messages import Message
from deltamem_agents.store import Entry


@dataclass(frozen=True, slots=True)
class Aligned:
    """A caller's messages, sorted by what they are to the session."""

    shown: tuple[Message, ...]
    """System prompts, and messages the session doesn't know that stand before the new ones: shown, never written."""
    new: tuple[Message, ...]
    """What was said since the end of the ledger."""


def align(messages: Sequence[Message], ledger: Sequence[Entry]) -> Aligned:
    """Finds where the new messages begin.

    1. If messages carry ids that the ledger knows, the last of them marks the point, moved on over messages that equal
       what the ledger holds next.
    2. Else the longest run of messages that equals the end of the ledger marks it, wherever it stands.
    3. Else everything is new: memory may hold a thing twice, it never loses one.

    Ids that the ledger doesn't know prove nothing: some frameworks give the same message a new one at every call.

    Args:
        messages: what the caller passes: the full history, a trimmed one, or only what is new.
        ledger: the end of the session's ledger, at least as long as `messages`.
    """
    spoken = [m for m in messages if m.role != "system"]
    point = _after_known_id(spoken, ledger)
    if point is None:
        point = _after_longest_run(spoken, ledger)
    known = {entry.digest for entry in ledger} | {entry.message_id for entry in ledger}
    unknown = [m for m in spoken[:point] if m.digest() not in known and (m.id is None or m.id not in known)]
    shown = [m for m in messages if m.role == "system"] + unknown
    return Aligned(tuple(shown), tuple(spoken[point:]))


def _after_known_id(spoken: Sequence[Message], ledger: Sequence[Entry]) -> int | None:
    places = {entry.message_id: place for place, entry in enumerate(ledger) if entry.message_id is not None}
    for point in range(len(spoken), 0, -1):
        known = places.get(spoken[point - 1].id or "")
        if known is None:
            continue
        for message, entry in zip(spoken[point:], ledger[known + 1 :], strict=False):
            if not _continues(message, entry):
                break
            point += 1
        return point
    return None


def _after_longest_run(spoken: Sequence[Message], ledger: Sequence[Entry]) -> int:
    digests = [m.digest() for m in spoken]
    ends = [entry.digest for entry in ledger]
    best_length, best_point = 0, 0
    for point in range(1, len(digests) + 1):
        length = 0
        while length < min(point, len(ends)) and digests[point - 1 - length] == ends[-1 - length]:
            length += 1
        if length and length >= best_length:
            best_length, best_point = length, point
    return best_point


def _continues(message: Message, entry: Entry) -> bool:
    """Whether a message after a known one is what the ledger holds there; different ids of a caller's say it is not."""
    both = message.id is not None and entry.message_id is not None and message.role != "assistant"
    return message.id == entry.message_id if both else message.digest() == entry.digest
