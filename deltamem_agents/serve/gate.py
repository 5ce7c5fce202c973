"""How many calls may be under way: more are refused, and when the server stops, none begin."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deltamem_agents.serve.errors import RETRY, ApiError

AGAIN = (1, 60)
"""The least and the most seconds that a client is told to wait."""


class Gate:
    """Counts calls of the model. Belongs to one event loop.

    Args:
        at_once: how many the model works on together.
        max_queue: how many more may wait.
    """

    def __init__(self, *, at_once: int, max_queue: int) -> None:
        self._at_once, self._most = at_once, at_once + max_queue
        self._seconds = 1.0  # that a call takes, lately
        self._empty = asyncio.Event()
        self._empty.set()
        self.under_way = 0
        self.draining = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Counts one call, from its beginning to its end.

        Raises:
            ApiError: 429 when too many wait, 503 when the server is about to stop; both say when to come again.
        """
        if self.draining:
            raise ApiError(503, "the server is stopping: try again on another one", code="draining", headers=RETRY)
        if self.under_way >= self._most:
            raise ApiError(
                429,
                f"{self.under_way} calls are under way or wait, the most that are let in: try again later",
                code="queue_full",
                headers={"Retry-After": str(self._wait())},
            )
        self.under_way += 1
        self._empty.clear()
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds += 0.1 * (time.monotonic() - started - self._seconds)
            self.under_way -= 1
            if not self.under_way:
                self._empty.set()

    async def drain(self, timeout: float) -> bool:
        """Lets nothing more in; whether all that was under way has ended within so many seconds."""
        self.draining = True
        try:
            await asyncio.wait_for(self._empty.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def _wait(self) -> int:
        """Seconds until there should be room: a queue moves on by as many calls as the model takes together."""
        least, most = AGAIN
        return min(most, max(least, round(self._seconds * self._most / self._at_once / 4)))
