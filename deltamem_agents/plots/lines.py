"""Curves over something that grows: turns, tokens, steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_agents.plots.picture import COLOURS, Picture, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points joined by a line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    """As many values as `x` has."""
    faint: bool = False
    """Whether it stays in the background, without a place in the legend: single samples behind their median."""
    low: Sequence[float] = ()
    """Lower ends of the values' intervals, drawn as a band; none: no band."""
    high: Sequence[float] = ()
    """Upper ends likewise."""
    dots: bool = False
    """Whether each point is marked."""
    dashed: bool = False
    """For controls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes with its curves; curves of the same label have the same colour."""

    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    y_range: tuple[float | None, float | None] = (0, None)
    """Where the axis begins and ends; None: where the values do."""


def draw_lines(panels: Sequence[Panel], *, title: str) -> Picture:
    """Draws panels side by side.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    figure = new_figure(5.5 * len(panels), 4, title=title)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for curve in panel.curves:
            _draw(axes, curve, COLOURS[labels.index(curve.label) % len(COLOURS)])
        if all(isinstance(x, int) for curve in panel.curves for x in curve.x):
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel=panel.x_label, ylabel=panel.y_label, ylim=panel.y_range)
        tidy(axes)
        if len({curve.label for curve in panel.curves if not curve.faint}) > 1:
            axes.legend(fontsize=8.5, frameon=False)
    return Picture(figure)


def save_plot(path: Path, panels: Sequence[Panel], *, title: str) -> None:
    """Draws panels side by side and writes them as a PNG; creates the folder if need be.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    draw_lines(panels, title=title).save(path)


def _draw(axes: "Axes", curve: Curve, colour: str) -> None:
    if curve.faint:
        axes.plot(curve.x, curve.y, color=colour, alpha=0.3, linewidth=0.8)
        return
    if curve.low:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    line, marker = "--" if curve.dashed else "-", "o" if curve.dots else None
    axes.plot(curve.x, curve.y, line, label=curve.label, color=colour, linewidth=1.8, marker=marker, markersize=4)
