"""A run's log: JSON lines, and TensorBoard where it is installed."""

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from deltamem_agents.errors import TrainingError

Record = dict[str, float]
"""Figures of one step, by name."""
Progress = Callable[[int, int], None]
"""Called with how much of what takes a while is done, and how much there is."""


class RunLog:
    """Writes a line a step; opened again by a resumed run, it drops the steps that will be done once more."""

    def __init__(self, folder: Path, *, step: int) -> None:
        self.path = folder / "log.jsonl"
        self._board = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
        if self.path.exists():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            partial = self.path.with_suffix(".tmp")
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            partial.replace(self.path)

    def write(self, record: Record) -> None:
        """Appends a step.

        Raises:
            TrainingError: the file cannot be written.
        """
        rounded = {name: float(f"{value:.6g}") for name, value in record.items() if math.isfinite(value)}
        rounded["step"] = int(record["step"])
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rounded) + "\n")
        except OSError as error:
            raise TrainingError(
                f"{self.path} cannot be written ({error}): make room and run the same command again; it goes on "
                "from the last checkpoint"
            ) from error
        if self._board is not None:
            for name, value in rounded.items():
                self._board.add_scalar(name, value, rounded["step"])

    def close(self) -> None:
        """Flushes."""
        if self._board is not None:
            self._board.close()


def _step(line: str) -> float:
    """The step a line is of; infinity for one that a kill cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
