"""What was measured: every sample, and the ratios and verdicts that follow from them."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One measurement. Its value is the median of the samples, its spread their quartiles."""

    name: str
    samples: tuple[float, ...]
    unit: str
    """"×" for a ratio, else what the samples are in."""
    target: float | None = None
    at_least: bool = False
    """Whether the target is a least value; else it is a greatest one."""
    measured: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """For a ratio, what was measured above and below the line, in `measured_unit`."""
    measured_unit: str = "ms"

    @classmethod
    def ratio(
        cls,
        name: str,
        above: Sequence[float],
        below: Sequence[float],
        *,
        factor: float = 1.0,
        target: float | None = None,
        at_least: bool = False,
        unit: str = "ms",
    ) -> Self:
        """Pair by pair, factor · above / below: neighbours in time saw the same machine."""
        return cls(
            name=name,
            samples=tuple(factor * a / b for a, b in zip(above, below, strict=True)),
            unit="×",
            target=target,
            at_least=at_least,
            measured=(tuple(above), tuple(below)),
            measured_unit=unit,
        )

    @property
    def value(self) -> float:
        """The median sample."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The lower and upper quartile."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high

    @property
    def hit(self) -> bool | None:
        """Whether the target was met; None without a target."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Calls of one size, with memory and frozen; they took turns."""

    size: int
    tokens: int
    """That one call works off."""
    memory: tuple[float, ...]
    """Milliseconds of a call with memory."""
    frozen: tuple[float, ...]
    """Of the frozen backbone."""

    def over_frozen(self, name: str, *, target: float | None = None) -> BenchRow:
        """How much longer a call with memory takes."""
        return BenchRow.ratio(name, self.memory, self.frozen, target=target)

    def speed(self, times: Sequence[float]) -> float:
        """Tokens per second at the median of such times."""
        return 1000 * self.tokens / statistics.median(times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The same at several sizes, beside the frozen backbone."""

    name: str
    axis: str
    """What the sizes count."""
    points: tuple[Point, ...]
    """From small to large."""

    def at(self, size: int) -> Point:
        """The point of one size."""
        return next(point for point in self.points if point.size == size)

    def render(self) -> str:
        """A heading and a table, as Markdown."""
        lines = [f"## {self.name}", ""]
        lines += [f"| {self.axis} | with memory, tokens/s | ÷ first row | frozen, tokens/s | time ÷ frozen | spread |"]
        lines += ["|---|---|---|---|---|---|"]
        least = self.points[0].speed(self.points[0].memory)
        for point in self.points:
            ratio, speed = point.over_frozen(self.name), point.speed(point.memory)
            numbers = [_number(x) for x in (speed, speed / least, point.speed(point.frozen), ratio.value)]
            low, high = ratio.spread
            lines += [f"| {point.size} | {' | '.join(numbers)} | {_number(low)}–{_number(high)} |"]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """One run on one machine."""

    setup: dict[str, str]
    """Machine, versions, model and seed."""
    rows: tuple[BenchRow, ...]
    series: tuple[Series, ...] = ()
    """What depends on a size."""
    profiles: dict[str, str] = field(default_factory=dict)
    """Tables of torch's profiler, by what was profiled."""

    def to_json(self) -> str:
        """Everything, with all samples."""
        rows = [
            {**dataclasses.asdict(row), "value": row.value, "spread": row.spread, "hit": row.hit} for row in self.rows
        ]
        series = [dataclasses.asdict(one) for one in self.series]
        report = {"setup": self.setup, "rows": rows, "series": series, "profiles": self.profiles}
        return json.dumps(report, indent=1, ensure_ascii=False)

    def save(self, path: Path) -> None:
        """Writes the Markdown table, and the JSON beside it: `path` with the endings .md and .json."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".md").write_text(render(self), encoding="utf-8")
        path.with_suffix(".json").write_text(self.to_json() + "\n", encoding="utf-8")


def render(report: BenchReport) -> str:
    """The report as Markdown."""
    lines = [f"- {name}: {value}" for name, value in report.setup.items()]
    lines += ["", "| what | target | measured | spread | from | |", "|---|---|---|---|---|---|"]
    lines += [_line(row) for row in report.rows]
    for series in report.series:
        lines += ["", series.render()]
    for name, table in report.profiles.items():
        lines += ["", f"## {name}", "", "```", table.strip("\n"), "```"]
    return "\n".join(lines) + "\n"


def _line(row: BenchRow) -> str:
    low, high = row.spread
    target = "" if row.target is None else f"{'≥' if row.at_least else '≤'} {row.target:g}{_unit(row)}"
    verdict = {True: "hit", False: "miss", None: ""}[row.hit]
    source = ""
    if row.measured is not None:
        above, below = (statistics.median(numbers) for numbers in row.measured)
        source = f"{_number(above)} / {_number(below)} {row.measured_unit}"
    value = f"{_number(row.value)}{_unit(row)}"
    return f"| {row.name} | {target} | {value} | {_number(low)}–{_number(high)} | {source} | {verdict} |"


def _unit(row: BenchRow) -> str:
    return "" if row.unit == "×" else f" {row.unit}"


def _number(x: float) -> str:
    return f"{x:.0f}" if x >= 1000 else f"{x:.3g}" if x >= 10 else f"{x:.3f}"
