"""One thread owns the model; callers queue work and receive what it yields."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from deltamem_agents.errors import GenerationError

T = TypeVar("T")
_CLOSED = "this engine is closed: make a new one"


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    """The end of a stream: its result, or what went wrong."""

    result: T | None = None
    error: BaseException | None = None


Emit = Callable[[str], None]
Work = Callable[[Emit, threading.Event], T]
"""A piece of work: gets a function that takes text as it comes, and an event that is set when nobody waits any more."""


class Worker:
    """Runs work one piece at a time, in order, on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    def close(self) -> None:
        """Finishes what is queued and ends the thread."""
        self._executor.shutdown(wait=True)

    def submit(self, work: Work[T], emit: Emit, cancelled: threading.Event) -> "Future[T]":
        """Queues a piece of work."""
        try:
            return self._executor.submit(work, emit, cancelled)
        except RuntimeError as error:
            raise GenerationError(_CLOSED) from error

    def run(self, work: Work[T]) -> T:
        """Queues a piece of work and waits for its result; an interrupt of the waiting thread cancels it."""
        cancelled = threading.Event()
        future = self.submit(work, _ignore, cancelled)
        try:
            return future.result()
        except BaseException:
            cancelled.set()
            raise

    async def arun(self, work: Work[T]) -> T:
        """`run` for an event loop; cancelling the task cancels the work."""
        cancelled = threading.Event()
        future = self.submit(work, _ignore, cancelled)
        try:
            return await asyncio.wrap_future(future)
        except BaseException:
            cancelled.set()
            raise

    def stream(self, work: Work[T]) -> Generator[str | T, None, None]:
        """Yields text as it comes, then the result. Leaving early cancels the work and waits for it to stop."""
        cancelled = threading.Event()
        items: queue.SimpleQueue[str | _Done[T]] = queue.SimpleQueue()
        future = self.submit(work, items.put, cancelled)
        future.add_done_callback(lambda f: items.put(_done(f)))
        try:
            while not isinstance(item := items.get(), _Done):
                yield item
            yield _unwrap(item)
        finally:
            cancelled.set()
            _settle(future)

    async def astream(self, work: Work[T]) -> AsyncGenerator[str | T, None]:
        """`stream` for an event loop."""
        cancelled = threading.Event()
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[str | _Done[T]] = asyncio.Queue()

        def put(item: str | _Done[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(items.put_nowait, item)

        future = self.submit(work, put, cancelled)
        future.add_done_callback(lambda f: put(_done(f)))
        try:
            while not isinstance(item := await items.get(), _Done):
                yield item
            yield _unwrap(item)
        finally:
            cancelled.set()
            future.cancel()


def _ignore(text: str) -> None:
    pass


def _done(future: "Future[T]") -> _Done[T]:
    if future.cancelled():
        return _Done(error=GenerationError(_CLOSED))
    error = future.exception()
    return _Done(error=error) if error else _Done(future.result())


def _unwrap(done: _Done[T]) -> T:
    if done.error is not None:
        raise done.error
    return done.result  # type: ignore[return-value]


def _settle(future: "Future[T]") -> None:
    """Waits until cancelled work has stopped, so that nothing of it is still under way."""
    if not future.cancel():
        future.exception()
