"""What the memory is worth: suites with their controls, and the course of a training run."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from deltamem_agents.plots.lines import Curve, Panel, draw_lines
from deltamem_agents.plots.picture import COLOURS, INK, Picture, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONTROLS = ("zero", "swapped", "shuffled")
"""Words that mark a condition as a control: its bars are hatched."""
MEMORY = ("δ-mem", "delta-mem", "own")
"""Words that mark a condition as one with memory."""
PARTS = 20
"""A run's curves are smoothed over a twentieth of it."""


class Score(TypedDict):
    """One number of an evaluation."""

    suite: str
    condition: str
    budget: int | None
    """Visible tokens; None: no limit, or none that matters."""
    measure: str
    mean: float
    low: float
    """Lower end of the interval."""
    high: float


def draw_scores(scores: Sequence[Score], *, title: str = "") -> Picture:
    """Bars with intervals: a panel for each suite and measure, a group for each condition, a bar for each budget.

    Conditions and budgets stand in the order in which they first come. Teal is with memory, grey without, hatched a
    control; darker is a larger budget.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    kinds = list(dict.fromkeys((s["suite"], s["measure"]) for s in scores))
    conditions = list(dict.fromkeys(s["condition"] for s in scores))
    budgets = list(dict.fromkeys(s["budget"] for s in scores))
    height = 1.2 + len(conditions) * (0.18 + 0.16 * len(budgets))
    figure = new_figure(2 + 3.6 * len(kinds), height, title=title)
    row = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, (suite, measure) in zip(row, kinds, strict=True):
        mine = [s for s in scores if (s["suite"], s["measure"]) == (suite, measure)]
        for score in mine:
            _bar(axes, score, conditions, budgets)
        axes.set_title(suite, fontsize=10, color=INK)
        axes.set(xlabel=measure, xlim=(min(0.0, *(s["low"] for s in mine)), None))
        axes.set_yticks(range(len(conditions)), conditions)
        axes.set_ylim(len(conditions) - 0.5, -0.5)  # the first condition on top
        tidy(axes)
        axes.grid(visible=False, axis="y")
    if budgets != [None]:
        tokens = ", ".join("no limit" if b is None else f"{b:,}" for b in budgets)
        figure.supxlabel(f"bars of a condition, from above: {tokens} visible tokens", fontsize=8.5, color=INK)
    return Picture(figure)


def _bar(axes: "Axes", score: Score, conditions: Sequence[str], budgets: Sequence[int | None]) -> None:
    thick = 0.8 / len(budgets)
    number = budgets.index(score["budget"])
    place = conditions.index(score["condition"]) - 0.4 + thick * (number + 0.5)
    words = score["condition"].lower()
    control = any(word in words for word in CONTROLS)
    colour = COLOURS[0] if any(word in words for word in MEMORY) else "#64748b"
    shade = 0.45 + 0.55 * (number + 1) / len(budgets)
    axes.barh(
        place,
        score["mean"],
        height=0.9 * thick,
        color="none" if control else colour,
        edgecolor=colour,
        hatch="////" if control else None,
        alpha=shade,
    )
    bounds = [[max(0.0, score["mean"] - score["low"])], [max(0.0, score["high"] - score["mean"])]]
    axes.errorbar(score["mean"], place, xerr=bounds, color=INK, linewidth=1, capsize=1.5)


def draw_training(log: Path | Sequence[Mapping[str, float]]) -> Picture:
    """The course of a training run: its loss, and answers, in training and in its evaluations with their control.

    Args:
        log: `log.jsonl` of a run, or its records.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: there is no such file.
    """
    records = log
    if isinstance(records, Path):
        records = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    around = max(1, len(records) // PARTS)
    y_label = f"loss (thin), median of {around}"
    loss = Panel(x_label="step", y_label=y_label, curves=_course(records, "loss", around))
    swapped = list(dict.fromkeys(name for r in records for name in r if name.endswith("_swapped")))
    curves = [replace(c, label="in training") for c in _course(records, "exact", around)]
    for name in (end for s in swapped for end in (s.removesuffix("_swapped"), s)):
        asked = [r for r in records if name in r]
        label = name.removesuffix("_swapped").replace("_", " ")
        label += ", another's memory" if name in swapped else ", own memory"
        x, y = [r["step"] for r in asked], [r[name] for r in asked]
        curves.append(Curve(label=label, x=x, y=y, dots=True, dashed=name in swapped))
    panels = [loss]
    if curves:
        shares = tuple(curves)
        panels.append(Panel(x_label="step", y_label="share of exact answers", curves=shares, y_range=(-0.02, 1.02)))
    return draw_lines(panels, title="Training")


def _course(records: Sequence[Mapping[str, float]], name: str, around: int) -> tuple[Curve, ...]:
    """A figure of the steps that have it: each one faintly, and the median of so many in front of it."""
    found = [r for r in records if name in r]
    steps, values = [r["step"] for r in found], [r[name] for r in found]
    medians = [statistics.median(values[max(0, i + 1 - around) : i + 1]) for i in range(len(values))]
    curves = Curve(label=name, x=steps, y=values, faint=True), Curve(label=name, x=steps, y=medians)
    return curves if found else ()
