"""The recall table: shares with intervals, targets beside them, and every answer behind them."""

import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import transformers

from deltamem_agents.backbone.int8 import kind_of_weights
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.evaluate.intervals import bootstrap, wilson
from deltamem_agents.evaluate.judging import Measure, Verdict
from deltamem_agents.evaluate.perplexity import Reading
from deltamem_agents.evaluate.rows import Condition, Figure

SHOWN: tuple[Condition, ...] = ("own", "swapped", "frozen")
Unit = Literal["share", "points", "change"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, the answers under each condition, and what they say."""

    row: str
    seed: int
    about: str
    """The kind of episode."""
    question: str
    values: tuple[str, ...]
    stale: tuple[str, ...]
    answers: Mapping[Condition, str]
    verdicts: Mapping[Condition, Verdict]
    replies: tuple[str, ...] = ()
    """The assistant's replies between telling and asking, where questions were asked there."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share or a mean change, with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    """Of how many questions."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    row: str
    title: str
    unit: Unit
    """A share; a difference of shares; or a relative change."""
    target: str
    met: bool | None
    """None where there is no target."""
    shares: Mapping[Condition, Share]
    seeds: Mapping[int, float]
    """The own memory's value for each seed."""


@dataclass(frozen=True, slots=True)
class RecallReport:
    """What `evaluate_recall` found, and under what circumstances."""

    lines: tuple[Line, ...]
    circumstances: Mapping[str, str]
    questions: tuple[Asked, ...]
    readings: tuple[Reading, ...]

    def render(self) -> str:
        """The table in Markdown, with 95 % intervals."""
        lines = [
            "The exact value in a free greedy answer through the engine: told live, one message at a time, each",
            "answered by the model; asked with nothing of it in the prompt; phrasings that training never saw. 95 %",
            "intervals: Wilson's for shares, bootstrap for changes and for shares of several values.",
            "",
            *(f"- {name}: {value}" for name, value in self.circumstances.items()),
            "",
            "| | target | own memory | | somebody else's memory | frozen model | questions | each seed |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for line in self.lines:
            shares = [line.shares.get(condition) for condition in SHOWN]
            own, swapped, frozen = ("–" if share is None else _cell(share, line.unit) for share in shares)
            met = {None: "", True: "hit", False: "miss"}[line.met]
            seeds = ", ".join(_number(value, line.unit) for value in line.seeds.values())
            count = line.shares["own"].count
            lines.append(f"| {line.title} | {line.target} | {own} | {met} | {swapped} | {frozen} | {count} | {seeds} |")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON: every question with its answers too."""
        return asdict(self)


def figure_line(row: str, figure: Figure, asked: Sequence[Asked]) -> Line:
    """A figure over the questions of its row, of all seeds."""
    chosen = [a for a in asked if figure.about in (None, a.about)]

    def share(condition: Condition) -> Share | None:
        return _share(_of(chosen, condition, figure.measure))

    found = {c: s for c in get_args(Condition) if (s := share(c)) is not None}
    shares = {**found, "own": found[figure.condition]}
    if figure.condition != "own":
        shares.pop("swapped", None)  # those were asked at another time
    if figure.condition != "own" and "window 0" in found:
        shares.pop("frozen", None)  # it saw another window
    target = figure.target
    return Line(
        row,
        figure.title,
        "share",
        "" if target is None else target.text,
        None if target is None else target.met({c: s.value for c, s in shares.items()}),
        shares,
        _by_seed(chosen, lambda part: _mean(_of(part, figure.condition, figure.measure))),
    )


def change_line(row: str, title: str, asked: Sequence[Asked]) -> Line:
    """How far the share of right answers moved from before to after, question by question."""

    def moved(part: Iterable[Asked]) -> list[int]:
        return [a.verdicts["own"].right - a.verdicts["before"].right for a in part]

    share = Share(_mean(moved(asked)), *bootstrap(moved(asked)), len(asked))
    return Line(row, title, "points", "", None, {"own": share}, _by_seed(asked, lambda part: _mean(moved(part))))


def reading_line(row: str, figure: Figure, readings: Sequence[Reading]) -> Line:
    """The relative change of perplexity, paired by memory and piece of text."""

    def change(nats: float) -> float:
        return math.expm1(nats)

    moved = [r.full - r.empty for r in readings]
    low, high = bootstrap(moved)
    share = Share(change(_mean(moved)), change(low), change(high), len(moved))
    seeds = {
        seed: change(_mean([r.full - r.empty for r in readings if r.seed == seed]))
        for seed in dict.fromkeys(r.seed for r in readings)
    }
    target = figure.target
    met = None if target is None else target.met({"own": share.value})
    return Line(row, figure.title, "change", target.text if target else "", met, {"own": share}, seeds)


def circumstances(engine: DeltaMemEngine) -> dict[str, str]:
    """Machine, versions and fingerprint, by name."""
    device = engine.model.device
    machine = f"{_processor()}, {os.cpu_count()} cores, threads used: {torch.get_num_threads()}"
    if device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(device)}; {machine}"
    return {
        "machine": machine,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "backbone": f"{Path(engine.model.backbone.config.name_or_path or '?').name}, "
        f"{kind_of_weights(engine.model.backbone)}",
        "fingerprint (backbone+tokenizer+adapter)": engine.fingerprint,
    }


def _processor() -> str:
    """The processor's name; the kernel knows more than `platform` does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _of(asked: Iterable[Asked], condition: Condition, measure: Measure) -> list[float]:
    """What is measured, of the questions that were asked under this condition."""
    return [float(getattr(a.verdicts[condition], measure)) for a in asked if condition in a.verdicts]


def _share(found: Sequence[float]) -> Share | None:
    if not found:
        return None
    whole = all(share in (0.0, 1.0) for share in found)
    bounds = wilson(round(sum(found)), len(found)) if whole else bootstrap(found)
    return Share(_mean(found), *bounds, len(found))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _by_seed(asked: Sequence[Asked], value: Callable[[Sequence[Asked]], float]) -> dict[int, float]:
    return {seed: value([a for a in asked if a.seed == seed]) for seed in dict.fromkeys(a.seed for a in asked)}


def _number(value: float, unit: Unit) -> str:
    if unit == "share":
        return f"{value * 100:.1f} %"
    return f"{value * 100:+.1f} " + ("points" if unit == "points" else "%")


def _cell(share: Share, unit: Unit) -> str:
    bounds = f"{share.low * 100:.0f}–{share.high * 100:.0f}"
    if unit != "share":
        bounds = f"{share.low * 100:+.1f} to {share.high * 100:+.1f}"
    return f"{_number(share.value, unit)} ({bounds})"
