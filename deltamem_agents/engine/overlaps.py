"""Which turns were committed while a call was under way: such calls are chained, not taken for another try."""

import itertools
from collections import OrderedDict

from deltamem_agents.engine.records import Request
from deltamem_agents.store import Snapshot

REMEMBERED = 4096
"""Commits of this process whose order is known; older ones are compared by the clock."""


class CallOrder:
    """Counts the calls and commits of one engine. Safe to use from several threads."""

    def __init__(self) -> None:
        self._count = itertools.count(1)
        self._commits: OrderedDict[str, int] = OrderedDict()

    def next(self) -> int:
        """The number of a call that is being made."""
        return next(self._count)

    def committed(self, snapshot: str) -> None:
        """Notes a commit."""
        self._commits[snapshot] = next(self._count)
        while len(self._commits) > REMEMBERED:
            self._commits.popitem(last=False)

    def overlaps(self, turn: Snapshot, request: Request) -> bool:
        """Whether a turn was committed after a call was made: by our own count, by the clock for other processes."""
        number = self._commits.get(turn.id)
        return turn.created_at > request.made_at if number is None else number > request.order
