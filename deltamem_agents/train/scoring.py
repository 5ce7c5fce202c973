"""How well replies of conversations that were held out are predicted, from the own memory and from another's."""

from collections.abc import Sequence
from itertools import chain, zip_longest

import torch
from torch import Tensor

from deltamem_agents.state import MemoryState
from deltamem_agents.train.answers import answer_logits
from deltamem_agents.train.episode import Episode
from deltamem_agents.train.losses import IGNORED
from deltamem_agents.train.objective import Objective
from deltamem_agents.train.runlog import Record

ROWS = 4
"""Replies that are scored together: they may be long."""


@torch.no_grad()
def reply_scores(objective: Objective, conversations: Sequence[Sequence[Episode]], *, count: int) -> Record:
    """Share of tokens that are the likeliest one, and −log p a token, over held-out replies; exact ones are too rare.

    Args:
        objective: writes memories and renders replies.
        conversations: two at least, each with its episodes.
        count: how many replies at most, in turn from all conversations.

    Returns:
        `chats` and `chats_nats`, and as `chats_swapped` and `chats_swapped_nats` the same from the memory that a reply
        of another conversation has.
    """
    numbered = [[(number, e) for e in episodes] for number, episodes in enumerate(conversations)]
    chosen = [pair for pair in chain.from_iterable(zip_longest(*numbered)) if pair is not None][: max(2, count)]
    owners, episodes = [owner for owner, _ in chosen], [episode for _, episode in chosen]
    turns = [range(start, min(start + ROWS, len(episodes))) for start in range(0, len(episodes), ROWS)]
    own = torch.cat([objective.write([episodes[i] for i in turn], together=True).state.tensor for turn in turns])
    swapped = own[[_other(owners, place) for place in range(len(owners))]]
    figures: Record = {}
    for name, states in (("chats", own), ("chats_swapped", swapped)):
        right, nats, tokens = 0.0, 0.0, 0
        for turn in turns:
            rows = objective.rows([episodes[i] for i in turn])
            logits = answer_logits(objective.model, rows, MemoryState(states[turn.start : turn.stop]))
            on = rows.targets != IGNORED
            right += _right(logits, rows.targets)
            nats -= logits[on].log_softmax(-1).gather(-1, rows.targets[on][:, None]).sum().item()
            tokens += int(on.sum())
        figures |= {name: right / tokens, f"{name}_nats": nats / tokens}
    return figures


def _other(owners: Sequence[int], place: int) -> int:
    """The next place after this one, around the end, that another conversation has."""
    places: list[int] = [*range(place + 1, len(owners)), *range(place)]
    return next(other for other in places if owners[other] != owners[place])


def _right(logits: Tensor, targets: Tensor) -> float:
    return ((logits.argmax(-1) == targets) & (targets != IGNORED)).sum().item()
