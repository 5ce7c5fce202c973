"""What the model sees and what it remembers when it is asked: conditions and their controls."""

from dataclasses import dataclass
from typing import Literal

Visible = Literal["nothing", "window", "bm25", "summary", "evidence", "full"]
Memory = Literal["off", "own", "zero", "swapped", "shuffled"]
BUDGETS = (128, 256, 512, 1024)
"""Tokens of the conversation that may be visible."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One way to be asked."""

    title: str
    visible: Visible
    """What of the conversation is in the prompt."""
    memory: Memory
    """Which state is read: none at all (the frozen model), the conversation's, or a control's."""

    @property
    def budgeted(self) -> bool:
        """Whether a budget limits what is visible."""
        return self.visible in ("window", "bm25", "summary")


CONDITIONS: dict[str, Condition] = {
    "none": Condition("frozen, nothing visible", "nothing", "off"),
    "window": Condition("frozen + recent window", "window", "off"),
    "bm25": Condition("frozen + BM25", "bm25", "off"),
    "summary": Condition("frozen + rolling summary", "summary", "off"),
    "evidence": Condition("frozen + the evidence alone", "evidence", "off"),
    "full": Condition("frozen + as much as fits", "full", "off"),
    "state": Condition("δ-mem alone", "nothing", "own"),
    "state+window": Condition("δ-mem + window", "window", "own"),
    "state+bm25": Condition("δ-mem + BM25", "bm25", "own"),
    "zero": Condition("control: empty state", "nothing", "zero"),
    "shuffled": Condition("control: own state, shuffled", "nothing", "shuffled"),
    "swapped": Condition("control: another's state", "nothing", "swapped"),
    "swapped+window": Condition("control: another's state + window", "window", "swapped"),
    "swapped+bm25": Condition("control: another's state + BM25", "bm25", "swapped"),
}
"""By name."""
GAINS = {
    "none": ("state", "swapped"),
    "window": ("state+window", "swapped+window"),
    "bm25": ("state+bm25", "swapped+bm25"),
}
"""What a memory is added to: with the conversation's own, and with another's."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """A condition at a budget."""

    condition: str
    budget: int | None
    """None where no budget applies."""


def cells(conditions: tuple[str, ...], budgets: tuple[int, ...]) -> list[Cell]:
    """Conditions, those with a budget at each of them."""
    return [Cell(name, budget) for name in conditions for budget in (budgets if CONDITIONS[name].budgeted else (None,))]
