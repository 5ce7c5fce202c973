"""Models that break or wait where a test says so, and stores that fail or are overtaken."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deltamem_agents import ConflictError, DeltaMemModel, MemoryStore, Snapshot, SQLStore, StoreError


@contextmanager
def before_forward(model: DeltaMemModel, number: int, act: Callable[[], object]) -> Iterator[None]:
    """Acts before the forward of this number, counted from 0 within the block."""
    calls = iter(range(1_000_000))

    def hook(*_: object) -> None:
        if next(calls) == number:
            act()

    handle = model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def slowed(model: DeltaMemModel, wait: Callable[[], object]) -> Iterator[None]:
    """Waits before every forward."""
    handle = model.register_forward_pre_hook(lambda *_: (wait(), None)[1])
    try:
        yield
    finally:
        handle.remove()


class Gate:
    """Holds the model thread until it is opened, and says when it has arrived."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(60)


def breakdown() -> None:
    raise RuntimeError("the device is gone")


class FailingStore(MemoryStore):
    """Fails to commit as long as `fails` is set."""

    def __init__(self, error: type[StoreError] = StoreError) -> None:
        super().__init__()
        self.error, self.fails, self.tries = error, True, 0

    def commit(self, name: str, snapshot: Snapshot, *, expected: str | None) -> None:
        self.tries += 1
        if self.fails:
            raise self.error("the disk is full")
        super().commit(name, snapshot, expected=expected)


class OvertakenStore(SQLStore):
    """Lets somebody else go first at each commit for which there is an `overtaking` left."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.overtaking: list[Callable[[], object]] = []
        self.conflicts = 0

    def commit(self, name: str, snapshot: Snapshot, *, expected: str | None) -> None:
        if self.overtaking:
            self.overtaking.pop(0)()
        try:
            super().commit(name, snapshot, expected=expected)
        except ConflictError:
            self.conflicts += 1
            raise
