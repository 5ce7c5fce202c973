"""A chart of the turns: how much of the memory each wrote, and how strong the memory was after it."""

from collections.abc import Sequence
from dataclasses import dataclass

from deltamem_agents.report.history import TurnChange

WIDTH, HEIGHT = 1000.0, 150.0
WIDEST = 48.0
LABELS = 12
TOPS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Where the scale of shares may end."""


@dataclass(frozen=True, slots=True)
class Column:
    """A turn's place in the chart, in units of the drawing."""

    change: TurnChange
    x: float
    """Its middle."""
    width: float
    """Of its bar."""
    bar: float
    """Height of its bar: the share that it wrote. 0 where that is unknown."""
    y: float
    """Where the line of norms passes, from above."""
    labelled: bool
    """Whether there is room for its number."""


@dataclass(frozen=True, slots=True)
class Chart:
    """All turns of a line."""

    columns: tuple[Column, ...]
    share: float
    """The share at the top of the chart; bars beyond it are cut off there."""
    strongest: float
    """The norm at the top of the chart."""

    @property
    def points(self) -> str:
        """The line of norms, as SVG wants it."""
        return " ".join(f"{c.x:.1f},{c.y:.1f}" for c in self.columns)


def turn_chart(changes: Sequence[TurnChange]) -> Chart:
    """Gives each turn its place.

    The first turn always writes all there is; it must not set the scale for the others.
    """
    slot = min(2 * WIDEST, WIDTH / len(changes))
    strongest = max(change.norm for change in changes)
    shares = [change.new or 0.0 for change in changes if change.turn.turn > 1]
    share = next(top for top in TOPS if top >= max(shares, default=1.0))
    every = -(-len(changes) // LABELS)
    columns = [
        Column(
            change,
            x=slot * (number + 0.5),
            width=min(WIDEST, max(1.0, 0.7 * slot)),
            bar=HEIGHT * min(1.0, (change.new or 0.0) / share),
            y=HEIGHT * (1 - change.norm / strongest) if strongest else HEIGHT,
            labelled=(len(changes) - 1 - number) % every == 0,
        )
        for number, change in enumerate(changes)
    ]
    return Chart(tuple(columns), share, strongest)
