"""What sessions hold, against what was said in them."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from deltamem_agents.bench.serving.clients import Said
from deltamem_agents.engine import Engine
from deltamem_agents.messages import Message
from deltamem_agents.store import Snapshot

SAME = 1e-3
"""How far a state may be from that of a replay, as a share of its norm: sums in another order differ by less."""


@dataclass(slots=True)
class Ledger:
    """How often the ledger and the clients disagree. All but `kept` and `unsure` should be 0."""

    kept: int = 0
    """Turns on the sessions' lines."""
    unsure: int = 0
    """Of them: those whose client left before the reply was whole."""
    lost: int = 0
    """Replies that a client has read whole, and that are not there."""
    doubled: int = 0
    """Messages that are there more than once."""
    foreign: int = 0
    """Messages that nobody said in their session."""
    altered: int = 0
    """Replies that are not what the client read."""
    disordered: int = 0
    """Messages that stand before one that was said earlier."""

    def check(self, said: Sequence[Said], line: Sequence[Snapshot]) -> None:
        """Adds what one session's line holds, and what was said in that session, in order."""
        pairs = list(_pairs(line))
        places = {one.text: number for number, one in enumerate(said)}
        found = [places[text] for text, _ in pairs if text in places]
        counts = Counter(text for text, _ in pairs)
        replies = dict(pairs)
        since = found[0] if line and line[0].start > 0 and found else 0  # what came before was pruned
        self.kept += len(pairs)
        self.unsure += sum(said[place].reply is None for place in set(found))
        self.lost += sum(one.reply is not None and one.text not in counts for one in said[since:])
        self.doubled += sum(count - 1 for count in counts.values())
        self.foreign += sum(text not in places for text in counts)
        self.altered += sum(one.reply not in (None, replies.get(one.text, one.reply)) for one in said[since:])
        self.disordered += sum(later < place for place, later in itertools.pairwise(found))


@dataclass(slots=True)
class States:
    """How far sessions' states are from replays of their own texts, and from each other, as shares of their norms."""

    to_replay: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)
    """From each session to the one that is nearest to it."""

    @property
    def own(self) -> int:
        """How many are their own replay's."""
        return sum(distance <= SAME for distance in self.to_replay)


def compare_states(engine: Engine, sessions: Sequence[str]) -> States:
    """Replays each session's texts from nothing, in a fork that is forgotten again, with nobody else about."""
    found, states = States(), list[torch.Tensor]()
    for session in sessions:
        fork = f"{session} replayed"
        engine.fork(session, fork)
        try:
            engine.rebuild(fork)
            state, replayed = engine.state(session).tensor, engine.state(fork).tensor
        finally:
            engine.forget(fork)
        found.to_replay.append(float((state - replayed).norm() / replayed.norm()))
        states.append(state)
    for number, state in enumerate(states):
        others = [float((state - other).norm() / state.norm()) for n, other in enumerate(states) if n != number]
        found.apart += [min(others)] if others else []
    return found


def _pairs(line: Sequence[Snapshot]) -> Iterator[tuple[str, str | None]]:
    """What was said to the assistant on a line, each with the reply after it."""
    asked: str | None = None
    for entry in (entry for turn in line for entry in turn.entries):
        message = None if entry.text is None else Message.model_validate_json(entry.text)
        if entry.role == "user":
            if asked is not None:
                yield asked, None
            asked = "" if message is None else message.content
        elif asked is not None:
            yield asked, None if message is None else message.content
            asked = None
    if asked is not None:
        yield asked, None
