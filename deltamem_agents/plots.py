"""Plots as PNG files. They need matplotlib, which comes with the `notebooks` extra."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltamem_agents.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points joined by a line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    """As many values as `x` has."""
    faint: bool = False
    """Whether it stays in the background, without a place in the legend: single samples behind their median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes with its curves; curves of the same label have the same colour."""

    x_label: str
    y_label: str
    curves: tuple[Curve, ...]


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


def save_plot(path: Path, panels: Sequence[Panel], *, title: str) -> None:
    """Draws panels side by side, from zero on, and writes them as a PNG; creates the folder if need be.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    figure.suptitle(title)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for curve in panel.curves:
            legend = "_nolegend_" if curve.faint else curve.label
            style = {"alpha": 0.3, "linewidth": 0.8} if curve.faint else {"linewidth": 1.8}
            axes.plot(curve.x, curve.y, label=legend, color=f"C{labels.index(curve.label)}", **style)
        axes.set(xlabel=panel.x_label, ylabel=panel.y_label, ylim=(0, None))
        axes.grid(alpha=0.25)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
