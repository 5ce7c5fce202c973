"""A picture: shown by notebooks, saved by commands."""

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_agents.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0f7b8a", "#d97706", "#6d5bd0", "#b4235f", "#4d7c0f", "#475569", "#a16207", "#0369a1")
"""Of what is told apart, in the order of its appearance."""
INK, FAINT = "#1f2937", "#9ca3af"


class Picture:
    """A finished drawing. A notebook shows it when it is the last value of a cell.

    Args:
        figure: what matplotlib drew.
    """

    def __init__(self, figure: "Figure") -> None:
        self.figure = figure

    def __repr__(self) -> str:
        """Names it, for where it cannot be shown."""
        return f"Picture({self.figure.get_suptitle()!r})"

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """For notebooks: twice as sharp as it is wide."""
        return self.png(dpi=150), {"width": round(75 * self.figure.get_figwidth())}

    def png(self, *, dpi: int = 150) -> bytes:
        """The drawing as the bytes of a PNG file, the same for the same drawing."""
        file = io.BytesIO()
        self.figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
        return file.getvalue()

    def save(self, path: Path) -> None:
        """Writes a PNG; creates the folder if need be.

        Raises:
            OSError: the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.png())


def require_matplotlib() -> None:
    """Call this before long work that ends in a plot.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            'plots need matplotlib, which is not installed: pip install "deltamem-agents[notebooks]", or do without '
            "a plot"
        )


def new_figure(width: float, height: float, *, title: str) -> "Figure":
    """An empty figure, in inches, that finds room for its labels itself.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, color=INK, fontsize=12)
    return figure


def tidy(axes: "Axes", *, grid: bool = True) -> None:
    """Takes away what carries no meaning."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8.5)
    if grid:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
