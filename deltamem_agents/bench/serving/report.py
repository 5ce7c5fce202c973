"""What came of a load: figures, and what must hold of them."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltamem_agents.bench.serving.clients import Figures
from deltamem_agents.bench.serving.ledger import SAME, Ledger, States

FLAT = 1.1
"""The last quarter's memory may be this many times the quarter's before it."""
FLAT_FROM = 240.0
"""Seconds from which on memory is judged: before that, the KV caches of sessions fill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """One run."""

    setup: dict[str, str]
    seconds: float
    figures: Figures
    ledger: Ledger
    states: States
    memory: tuple[tuple[float, float], ...]
    """Seconds since the beginning, and the server's resident memory in MB; empty for a server elsewhere."""
    down: tuple[float, ...] = ()
    """Seconds from each kill to the server that was ready again."""
    stopped: int | None = 0
    """The exit status of the server that was told to stop; None for a server elsewhere."""

    @property
    def broken(self) -> list[str]:
        """What should hold and doesn't."""
        ledger, states, refused = self.ledger, self.states, self.figures.refused
        expected = {"429"} | ({"cut", "503"} if self.down else set())
        wrong = {
            "no turn was kept": ledger.kept == 0,
            f"{ledger.lost} replies are lost": ledger.lost,
            f"{ledger.doubled} messages are there twice": ledger.doubled,
            f"{ledger.foreign} messages are in sessions where nobody said them": ledger.foreign,
            f"{ledger.altered} replies are not what clients read": ledger.altered,
            f"{ledger.disordered} messages are out of order": ledger.disordered,
            f"{len(states.to_replay) - states.own} states are not their own replay's": states.own
            < len(states.to_replay),
            "states of different sessions are the same: they would not show cross-talk": bool(states.apart)
            and min(states.apart) <= SAME,
            f"there were other refusals than by 429: {refused}": not refused.keys() <= expected,
            f"memory grew {self.growth or 0:.2f} times": self.growth is not None and self.growth > FLAT,
            f"the server ended with status {self.stopped}": self.stopped not in (0, None),
        }
        return [what for what, is_so in wrong.items() if is_so]

    @property
    def growth(self) -> float | None:
        """The last quarter's memory over the quarter's before it; None where it is not judged."""
        if self.seconds < FLAT_FROM or self.down or not self.memory:
            return None
        third, last = (
            [mb for at, mb in self.memory if begin <= at / self.seconds < begin + 0.25] for begin in (0.5, 0.75)
        )
        return statistics.median(last) / statistics.median(third) if third and last else None

    def render(self) -> str:
        """The table, as Markdown."""
        figures, ledger, states = self.figures, self.ledger, self.states
        refused = ", ".join(f"{count} by {status}" for status, count in sorted(figures.refused.items())) or "none"
        lines = [f"- {name}: {value}" for name, value in self.setup.items()]
        lines += ["", "| what | found |", "|---|---|"]
        lines += [
            f"| turns kept | {ledger.kept}, of them {ledger.unsure} whose client had left |",
            f"| clients that left | {figures.left} |",
            f"| lost, doubled, foreign, altered, disordered by the ledger | {ledger.lost}, {ledger.doubled}, "
            f"{ledger.foreign}, {ledger.altered}, {ledger.disordered} |",
            f"| states that are their own replay's | {states.own} of {len(states.to_replay)}"
            f"{_within(states)} |",
            f"| requests refused | {refused} |",
            f"| time to first token, p50 and p95 | {_times(figures.first)} |",
            f"| between tokens, p50 and p95 | {_times(figures.between)} |",
            f"| tokens a second, all together | {figures.tokens / self.seconds:.1f} |",
        ]
        if self.memory:
            lines.append(f"| memory over time, MB | {self._memory()} |")
        if self.down:
            seconds = ", ".join(f"{each:.0f}" for each in self.down)
            lines.append(f"| killed | {len(self.down)} times; ready again after {seconds} s |")
        lines += ["", *([f"BROKEN: {what}" for what in self.broken] or ["everything held"])]
        return "\n".join(lines) + "\n"

    def save(self, path: Path) -> None:
        """Writes the table and everything measured next to each other, as .md and .json.

        Raises:
            OSError: they cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".md").write_text(self.render(), encoding="utf-8")
        everything = {**dataclasses.asdict(self), "broken": self.broken}
        path.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")

    def _memory(self) -> str:
        quarters = [
            statistics.median(part)
            for n in range(4)
            if (part := [mb for at, mb in self.memory if n <= 4 * at / self.seconds < n + 1])
        ]
        peak = max(mb for _, mb in self.memory)
        return f"{' → '.join(f'{mb:.0f}' for mb in quarters)} by quarters, {peak:.0f} at most"


def _within(states: States) -> str:
    if not states.to_replay or not states.apart:
        return ""
    return f"; at most {max(states.to_replay):.1e} of the norm away, others' at least {min(states.apart):.1e}"


def _times(samples: Sequence[float]) -> str:
    if not samples:
        return "none"
    return f"{1000 * _at(samples, 0.5):.0f} and {1000 * _at(samples, 0.95):.0f} ms"


def _at(samples: Sequence[float], share: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(share * len(samples)))]
