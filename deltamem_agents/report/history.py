"""How a session's memory came about, as far as its store tells: what each turn changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_agents.engine.inspection import replaced_share
from deltamem_agents.state import MemoryState
from deltamem_agents.store import Snapshot, StateStore


@dataclass(frozen=True, slots=True)
class TurnChange:
    """What one turn made of the memory."""

    turn: Snapshot
    norm: float
    """Frobenius norm of the whole memory after it."""
    new: float | None
    """The share of the memory that it wrote, see `replaced_share`; None: the state before it was pruned."""


def turn_changes(store: StateStore, line: Sequence[Snapshot]) -> list[TurnChange]:
    """What each turn of a line changed; loads one state after the other.

    Raises:
        StoreError: a snapshot is gone.
        StateError: a state cannot be read.
    """
    changes: list[TurnChange] = []
    before: Tensor | None = None
    for turn in line:
        after = MemoryState.from_bytes(store.snapshot(turn.id).state).tensor[0]
        if turn.turn == 1:
            before = torch.zeros_like(after)
        new = None if before is None else replaced_share(after, before)
        changes.append(TurnChange(turn, float(after.norm()), new))
        before = after
    return changes
