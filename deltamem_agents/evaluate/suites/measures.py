"""Figures over records, with bootstrap intervals that draw whole conversations: their questions are not independent."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.suites.conditions import Cell
from deltamem_agents.evaluate.suites.records import Record

DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean, or a ratio of sums, with its 95 % interval."""

    value: float
    low: float | None
    """None where no interval can be given: one conversation, or a denominator that is not surely positive."""
    high: float | None
    count: int
    """Questions."""

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.low is not None and self.low > 0


def clustered_ratio(
    parts: Sequence[float], wholes: Sequence[float], clusters: Sequence[str], *, draws: int = DRAWS
) -> Figure | None:
    """Sum of `parts` over sum of `wholes`, with a percentile interval from resampled clusters, the same every time.

    With ones for `wholes` it is a mean. None if there is nothing, or the sum of `wholes` is not positive.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    index = torch.tensor([names[name] for name in clusters], dtype=torch.long)
    sums = torch.zeros(2, len(names), dtype=torch.float64)
    sums[0].index_add_(0, index, torch.tensor(parts, dtype=torch.float64))
    sums[1].index_add_(0, index, torch.tensor(wholes, dtype=torch.float64))
    part, whole = sums.sum(1).tolist()
    if not clusters or whole <= 0:
        return None
    value = part / whole
    if len(names) < 2:
        return Figure(value, None, None, len(clusters))
    random = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(names), (draws, len(names)), generator=random)
    resampled = sums[:, drawn].sum(-1)
    if bool((resampled[1] <= 0).any()):
        return Figure(value, None, None, len(clusters))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(resampled[0] / resampled[1], ends).tolist()
    return Figure(value, low, high, len(clusters))


class Table:
    """Records by cell and question, all cells with the same questions.

    Raises:
        ConfigError: the cells have been asked different questions, or something visible is over its budget.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.cells: dict[Cell, dict[str, Record]] = {}
        for record in records:
            if record.budget is not None and record.visible_tokens > record.budget:
                raise ConfigError(
                    f"{record.condition} shows {record.visible_tokens} tokens for {record.question}, over the budget "
                    f"of {record.budget}: this run cannot be compared; run it anew into another --output"
                )
            self.cells.setdefault(record.cell, {})[record.question] = record
        asked = {cell: frozenset(found) for cell, found in self.cells.items()}
        if len(set(asked.values())) > 1:
            counts = ", ".join(f"{c.condition} {c.budget or ''}: {len(ids)}" for c, ids in asked.items())
            raise ConfigError(f"conditions were asked different questions ({counts}): let the run go on to its end")

    def mean(self, cell: Cell, value: Callable[[Record], float | None], *, of: str | None = None) -> Figure | None:
        """Mean over a cell's records where `value` is not None; of one category if `of` names it."""
        chosen = [r for r in self.cells[cell].values() if of in (None, r.category)]
        found = [(v, r.conversation) for r in chosen if (v := value(r)) is not None]
        return clustered_ratio([v for v, _ in found], [1.0] * len(found), [c for _, c in found])

    def difference(self, cell: Cell, other: Cell, value: Callable[[Record], float | None]) -> Figure | None:
        """Mean of `value` in `cell` less that in `other`, question by question."""
        moved, clusters = [], []
        for id, record in self.cells[cell].items():
            mine, theirs = value(record), value(self.cells[other][id])
            if mine is not None and theirs is not None:
                moved.append(mine - theirs)
                clusters.append(record.conversation)
        return clustered_ratio(moved, [1.0] * len(moved), clusters)

    def recovery(self, cell: Cell, *, over: Cell | None = None, of: str = "full") -> Figure | None:
        """(NLL_none − NLL_cell) / (NLL_none − NLL_of) over the questions that count; less that of `over`, if given.

        None where `none` or `of` ("full" or "evidence") were not asked, or where seeing it does not help the frozen
        model.
        """
        none, full = self.cells.get(Cell("none", None)), self.cells.get(Cell(of, None))
        if none is None or full is None:
            return None
        base = none if over is None else self.cells[over]
        rows = [
            (base[id].nats - record.nats, none[id].nats - full[id].nats, record.conversation)
            for id, record in self.cells[cell].items()
            if record.recalls
        ]
        return clustered_ratio([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])


def counted_nats(record: Record) -> float | None:
    """The right answer's likelihood, where recovery counts it."""
    return record.nats if record.recalls else None


def ranked_first(record: Record) -> float | None:
    """Whether the right candidate was likeliest, where there are candidates."""
    return None if record.ranked_first is None else float(record.ranked_first)


def score(name: str) -> Callable[[Record], float | None]:
    """One of the suite's own measures."""
    return lambda record: record.scores.get(name)


def categories(records: Mapping[str, Record]) -> list[str]:
    """The categories of a cell's questions, sorted."""
    return sorted({record.category for record in records.values()})
