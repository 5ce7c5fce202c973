"""Which of a caller's messages does a session know? By ids and handles, else by digests."""

from collections.abc import Sequence
from dataclasses import dataclass

from deltamem_agents.engine.runs import runs_anywhere, runs_at_end
from deltamem_agents.messages import Message
from deltamem_agents.store import Entry, Snapshot


@dataclass(frozen=True, slots=True)
class Known:
    """A message that both the caller and the session's ledger have."""

    index: int
    """Its place among the caller's messages, system prompts not counted."""
    turn: Snapshot
    """The turn that it is part of."""
    place: int
    """Its place among the turn's entries; -1: the point before them."""

    @property
    def entry(self) -> Entry:
        """The ledger's entry."""
        return self.turn.entries[self.place]

    @property
    def ends_turn(self) -> bool:
        """Whether nothing of its turn comes after it."""
        return self.place == len(self.turn.entries) - 1


def name_of(message: Message) -> str | None:
    """What a message is known by: our own handle, or the id that the caller's framework gave it."""
    return message.snapshot or message.id


def place_of(message: Message, turn: Snapshot) -> tuple[int, bool]:
    """Where a message of this name stands in a turn that holds one, and whether it is still the very same message."""
    place = [entry.message_id for entry in turn.entries].index(name_of(message))
    return place, turn.entries[place].digest == message.digest()


def moved_on(known: Known, spoken: Sequence[Message], turns: Sequence[Snapshot]) -> Known:
    """The last message after a known one for which caller and ledger go on alike: by name where both have one."""
    places = [(turn, place) for turn in turns for place in range(len(turn.entries))]
    here = next((n for n, (turn, place) in enumerate(places) if (turn.id, place) == (known.turn.id, known.place)), None)
    if here is None:
        return known
    for index, (turn, place) in zip(range(known.index + 1, len(spoken)), places[here + 1 :], strict=False):
        if not _same(spoken[index], turn.entries[place]):
            break
        known = Known(index, turn, place)
    return known


def by_digest(spoken: Sequence[Message], turns: Sequence[Snapshot]) -> Known | None:
    """The last message known by content, where ids prove nothing.

    1. The longest run of messages that equals the end of the ledger, wherever it stands.
    2. Else, when the messages end with all that came before the last reply, that reply's own question: the caller asks
       again. The run must reach back over the turn's start: "hi" alone, said again, is new.
    3. Else the longest run that equals any part of the ledger and holds a reply, up to its last reply: the caller has
       dropped or changed what came after it.

    Args:
        spoken: the caller's messages, without system prompts.
        turns: the last turns of the ledger, oldest first.
    """
    places = [(turn, place) for turn in turns for place in range(len(turn.entries))]
    line = [turn.entries[place].digest for turn, place in places]
    said = [message.digest() for message in spoken]
    length, stop = max(((run, stop) for stop, run in enumerate(runs_at_end(said, line), 1)), default=(0, 0))
    if length:
        return Known(stop - 1, *places[-1])
    if turns and len(line) > 1 and turns[-1].kind == "turn":
        question = len(turns[-1].entries) - 1
        if _run(said, line[:-1]) > max(question, 1):
            return Known(len(said) - 1, *places[-2])
    return _longest_with_reply(spoken, said, line, places)


def _longest_with_reply(
    spoken: Sequence[Message], said: Sequence[str], line: Sequence[str], places: Sequence[tuple[Snapshot, int]]
) -> Known | None:
    best, found = 2, None  # a reply alone, "Sure.", proves little
    for index, (length, at) in enumerate(runs_anywhere(said, line)):
        if spoken[index].role == "assistant" and length >= best:
            best, found = length, Known(index, *places[at])
    return found


def _run(said: Sequence[str], line: Sequence[str]) -> int:
    """How many digests at the two ends are equal."""
    length = 0
    while length < min(len(said), len(line)) and said[-1 - length] == line[-1 - length]:
        length += 1
    return length


def _same(message: Message, entry: Entry) -> bool:
    """Whether a message after a known one is what the ledger holds there; different ids of a caller's say it is not."""
    both = message.id is not None and entry.message_id is not None and message.role != "assistant"
    return message.digest() == entry.digest and (not both or message.id == entry.message_id)
