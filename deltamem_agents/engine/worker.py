"""How callers on any thread or event loop wait for work of the model thread."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from deltamem_agents.engine.scheduler import CLOSED, Emit, Job, Scheduler, Task
from deltamem_agents.errors import GenerationError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    """The end of a stream: its result, or what went wrong."""

    result: T | None = None
    error: BaseException | None = None


class Worker:
    """Queues tasks and waits for them. Whoever stops waiting cancels what he waited for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    @property
    def load(self) -> tuple[int, int]:
        """How many tasks are under way, and how many wait."""
        return self._scheduler.load

    def close(self) -> None:
        """Finishes what is queued and ends the thread."""
        self._scheduler.close()

    def run(self, task: Task[T]) -> T:
        """Waits for a task's result; an interrupt of the waiting thread cancels it."""
        job = self._submitted(task, _ignore)
        try:
            return job.future.result()
        except BaseException:
            job.cancelled.set()
            job.future.cancel()
            raise

    def run_all(self, tasks: Sequence[Task[T]]) -> list[T]:
        """Waits for all results. The first error cancels what is not complete by then, and is raised."""
        cancelled, errors = threading.Event(), list[BaseException]()

        def note(future: "Future[T]") -> None:
            error = None if future.cancelled() else future.exception()
            if error is not None and not cancelled.is_set():
                errors.append(error)
                cancelled.set()

        jobs = [Job(task, _ignore, cancelled) for task in tasks]
        for job in jobs:
            job.future.add_done_callback(note)
        self._scheduler.submit(*jobs)
        try:
            wait([job.future for job in jobs])
        except BaseException:
            cancelled.set()
            for job in jobs:
                job.future.cancel()
            raise
        if errors:
            raise errors[0]
        return [job.future.result() for job in jobs]

    async def arun(self, task: Task[T]) -> T:
        """`run` for an event loop; cancelling the asyncio task cancels the work."""
        job = self._submitted(task, _ignore)
        try:
            return await asyncio.wrap_future(job.future)
        except BaseException:
            job.cancelled.set()
            raise

    def stream(self, task: Task[T]) -> Generator[str | T, None, None]:
        """Yields text as it comes, then the result. Leaving early cancels the work and waits for it to stop."""
        items: queue.SimpleQueue[str | _Done[T]] = queue.SimpleQueue()
        job = self._submitted(task, items.put)
        job.future.add_done_callback(lambda f: items.put(_done(f)))
        try:
            while not isinstance(item := items.get(), _Done):
                yield item
            yield _unwrap(item)
        finally:
            job.cancelled.set()
            if not job.future.cancel():
                job.future.exception()  # so that nothing of it is still under way

    async def astream(self, task: Task[T]) -> AsyncGenerator[str | T, None]:
        """`stream` for an event loop."""
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[str | _Done[T]] = asyncio.Queue()

        def put(item: str | _Done[T]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(items.put_nowait, item)

        job = self._submitted(task, put)
        job.future.add_done_callback(lambda f: put(_done(f)))
        try:
            while not isinstance(item := await items.get(), _Done):
                yield item
            yield _unwrap(item)
        finally:
            job.cancelled.set()
            job.future.cancel()

    def _submitted(self, task: Task[T], emit: Emit) -> Job[T]:
        job = Job(task, emit, threading.Event())
        self._scheduler.submit(job)
        return job


def _ignore(text: str) -> None:
    pass


def _done(future: "Future[T]") -> _Done[T]:
    if future.cancelled():
        return _Done(error=GenerationError(CLOSED))
    error = future.exception()
    return _Done(error=error) if error else _Done(future.result())


def _unwrap(done: _Done[T]) -> T:
    if done.error is not None:
        raise done.error
    return done.result  # type: ignore[return-value]
