"""How far a training run is: one line of at most 80 columns that says the step first.

In a terminal the line changes with each step, and those of evaluations stay; elsewhere a line is printed at each
evaluation and, in between, once a minute.
"""

import time
from collections import deque
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

EVERY = 60.0
"""Seconds between lines where there is no terminal."""
RECENT = 50
"""Steps that the time left is judged by."""


def duration(seconds: float) -> str:
    """A time in hours, minutes and seconds: "2:10:33", "4:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class StepLine:
    """The line of a run.

    Args:
        stages: how many stages the recipe has.
        clock: seconds.
    """

    def __init__(self, *, stages: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.stages, self.clock = stages, clock
        self._known: dict[str, float] = {}
        self._ends = deque([clock()], maxlen=RECENT + 1)

    def after(self, record: dict[str, float], *, total: int) -> str:
        """The line after a step.

        Args:
            record: the step's figures; those of the last evaluation are remembered.
            total: how many steps there will be.
        """
        self._known |= record
        self._ends.append(self.clock())
        known, step = self._known, int(record["step"])
        parts = [f"step {step}/{total}"]
        if self.stages > 1:
            parts.append(f"stage {int(known['stage']) + 1}")
        parts.append(f"loss {known['loss']:.3f}")
        if "recall" in known:
            parts.append(f"recall {known['recall']:.0%}, swapped {known['recall_swapped']:.0%}")
        seconds = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        if total > step:
            parts.append(f"{duration(seconds * (total - step))} left")
        return "  ".join(parts)


class Shown:
    """A line that is shown as it changes.

    Args:
        console: where.
        clock: seconds.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._printed = clock()

    def __enter__(self) -> "Shown":
        """Begins to show."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Clears the line."""
        if self._live is not None:
            self._live.stop()

    def show(self, line: str, *, keep: bool = False) -> None:
        """Shows a line in the place of the last one.

        Args:
            line: the line.
            keep: whether it stays.
        """
        text = Text(line, no_wrap=True, overflow="ellipsis")
        if keep or (self._live is None and self.clock() - self._printed >= EVERY):
            self.console.print(text, soft_wrap=self._live is None)
            self._printed = self.clock()
        if self._live is not None:
            self._live.update(text, refresh=True)
