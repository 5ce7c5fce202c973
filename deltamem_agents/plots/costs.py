"""What the memory costs: against the frozen model by length of the prompt, and with many sessions at a time."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from deltamem_agents.plots.lines import Curve, Panel, draw_lines
from deltamem_agents.plots.picture import Picture


class RatioPoint(TypedDict):
    """How much longer something takes with memory than without."""

    phase: str
    """What is timed: "prefill" or "decode"."""
    tokens: int
    """Length of the prompt, or of the KV cache."""
    ratio: float
    """Time with memory ÷ time of the frozen model."""
    low: float
    """Lower quartile, or whichever lower end was measured."""
    high: float


class BatchPoint(TypedDict):
    """How much comes out when sessions decode together."""

    sessions: int
    tokens_per_second: float
    """Of all sessions together."""
    low: float
    high: float


def draw_ratios(points: Sequence[RatioPoint], *, targets: Mapping[str, float] | None = None) -> Picture:
    """A panel for each phase: the ratio over the length, with its interval.

    Args:
        points: in any order.
        targets: greatest ratios that count as good enough, by phase.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    panels = []
    for phase in dict.fromkeys(p["phase"] for p in points):
        mine = sorted((p for p in points if p["phase"] == phase), key=lambda p: p["tokens"])
        target = (targets or {}).get(phase)
        limits = {"frozen model": 1.0} | ({} if target is None else {f"target: {target:g}": target})
        curve = Curve(
            label=phase,
            x=[p["tokens"] for p in mine],
            y=[p["ratio"] for p in mine],
            low=[p["low"] for p in mine],
            high=[p["high"] for p in mine],
            dots=True,
        )
        x_label = "tokens in the KV cache" if phase == "decode" else "tokens in the prompt"
        panels.append(
            Panel(
                x_label=x_label,
                y_label=f"{phase}: time ÷ time of the frozen model",
                curves=(curve,),
                limits=limits,
                y_range=(None, None),
                doubling=True,
            )
        )
    return draw_lines(panels, title="What the memory costs")


def draw_batches(points: Sequence[BatchPoint]) -> Picture:
    """Tokens per second over the number of sessions that decode together, beside what perfect scaling would give.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    mine = sorted(points, key=lambda p: p["sessions"])
    sessions = [p["sessions"] for p in mine]
    single = mine[0]["tokens_per_second"] / sessions[0]
    measured = Curve(
        label="decoded together",
        x=sessions,
        y=[p["tokens_per_second"] for p in mine],
        low=[p["low"] for p in mine],
        high=[p["high"] for p in mine],
        dots=True,
    )
    ideal = [single * n for n in sessions]
    perfect = Curve(label="as many times one session", x=sessions, y=ideal, dashed=True)
    panel = Panel(
        x_label="sessions that decode together",
        y_label="tokens per second, all sessions",
        curves=(measured, perfect),
        doubling=True,
    )
    return draw_lines([panel], title="Many sessions at a time")
