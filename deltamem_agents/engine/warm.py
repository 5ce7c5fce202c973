"""KV caches of sessions between their turns: within a budget, and what it frees goes back to the system."""

import ctypes
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass

from deltamem_agents.generation import Row

EVERY = 1.0
"""Seconds between two returns of freed memory: one takes 10 to 200 ms where much has been freed."""


@dataclass(frozen=True, slots=True)
class Warm:
    """The KV cache that a session's last turn left behind."""

    session: str
    head: str
    start: str | None
    row: Row


class WarmRows:
    """The warm caches of one process; the one that was kept longest ago goes first. Used by one thread.

    Args:
        budget: bytes of all caches together.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: OrderedDict[str, Warm] = OrderedDict()
        self._returned = time.monotonic()

    def __contains__(self, session: str) -> bool:
        """Whether a session has one."""
        return session in self._kept

    def take(self, session: str) -> Warm | None:
        """A session's cache, which it no longer has then: rows are spent by feeding them."""
        return self._kept.pop(session, None)

    def keep(self, warm: Warm) -> None:
        """Keeps a session's cache, in place of the one it had."""
        self._kept[warm.session] = warm
        while sum(w.row.cache_bytes for w in self._kept.values()) > self._budget:
            self._kept.popitem(last=False)
        if time.monotonic() - self._returned > EVERY:
            return_freed_memory()
            self._returned = time.monotonic()


def return_freed_memory() -> bool:
    """Has the C library hand back what this process has freed; whether it can.

    Caches of all lengths are made and freed at every token, and pieces of them are kept: between those, glibc keeps the
    freed ones, one and a half times what is in use after some hundred turns of 64 sessions.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:  # not glibc
        return False
    trim(0)
    return True
