"""Ctrl-C and SIGTERM while something trains: what is under way is finished first, and kept."""

import os
import signal
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FINISHING = b"\nfinishing the step under way, then stopping; once more stops at once\n"


class Stopping:
    """Listens for both signals while it is entered, in the main thread.

    Args:
        listens: False leaves signals as they are.
    """

    def __init__(self, *, listens: bool) -> None:
        self.gently = False
        """Whether the first signal is only noted. Otherwise, and at a second one, a KeyboardInterrupt is raised."""
        self.signal: int | None = None
        """The signal that came."""
        self._handlers = dict.fromkeys(SIGNALS if listens else (), self._hear)

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self.signal or signal.SIGINT)

    def asked(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def __enter__(self) -> Self:
        """Begins to listen."""
        self._before = {number: signal.signal(number, handler) for number, handler in self._handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        again, self.signal = self.signal is not None, number
        if again or not self.gently:
            raise KeyboardInterrupt
        os.write(2, FINISHING)  # not through a buffer that this signal may have found half written
