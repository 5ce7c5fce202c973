"""One thread owns the model: it takes work in, feeds and decodes all of it together, and lets finished work go."""

import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from deltamem_agents.errors import GenerationError
from deltamem_agents.generation.decode import Decoder, Lane
from deltamem_agents.generation.prefill import PADDING, Prefill, Prompt

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
CLOSED = "this engine is closed: make a new one"
Emit = Callable[[str], None]
Steps = Generator[Lane | Prompt, None, T]
"""Work as the model thread does it: it yields a lane to have it decoded, and a prompt to have it fed in parts, until
nothing of it is left; nothing is fed of one that is cancelled. It returns its result."""


@dataclass(frozen=True, slots=True)
class Task(Generic[T_co]):
    """A piece of work for the model thread."""

    begin: Callable[[Emit, threading.Event], Steps[T_co]]
    """Gets a function that takes text as it comes, and an event that is set when nobody waits any more."""
    sessions: frozenset[str] = frozenset()
    """It begins when all work on these that was queued before it is done."""
    decodes: bool = False
    """Whether it has a lane decoded."""


@dataclass(slots=True, eq=False)
class Job(Generic[T]):
    """A task that somebody waits for."""

    task: Task[T]
    emit: Emit
    cancelled: threading.Event
    future: "Future[T]" = field(default_factory=Future)


class Scheduler:
    """Does work on a thread of its own, first come, first served for each session.

    Between two steps of decoding it begins what can begin: so turns join those that decode already, and leave them
    when they are complete. Prompts are fed in parts there, in turn, so that a long one lets the others go on.

    Args:
        decoder: decodes.
        prefill: feeds prompts.
        max_batch: how many lanes decode at once, at most.
        prefill_chunk: how many tokens of prompts are fed between two steps, at most, while there is other work.
    """

    def __init__(self, decoder: Decoder, prefill: Prefill, *, max_batch: int, prefill_chunk: int) -> None:
        assert max_batch > 0, "nothing could decode"
        assert prefill_chunk > 0, "nothing could be fed"
        self._decoder, self._prefill = decoder, prefill
        self._max_batch, self._prefill_chunk = max_batch, prefill_chunk
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="deltamem")
        self._lock = threading.Lock()
        self._waiting: list[Job[Any]] = []
        self._running: dict[int, tuple[Job[Any], Steps[Any]]] = {}  # by the id of the lane; the model thread's own
        self._feeding: list[tuple[Job[Any], Steps[Any], Prompt]] = []
        self._awake = self._closed = False
        self._process = os.getpid()

    def submit(self, *jobs: Job[Any]) -> None:
        """Queues jobs, all at once."""
        self._check_process()
        with self._lock:
            if self._closed:
                raise GenerationError(CLOSED)
            if not self._awake:
                try:
                    self._thread.submit(self._work)
                except RuntimeError as error:  # the interpreter is about to exit
                    raise GenerationError(CLOSED) from error
                self._awake = True
            self._waiting += jobs

    @property
    def load(self) -> tuple[int, int]:
        """How many jobs are under way, and how many wait."""
        return len(self._running) + len(self._feeding), len(self._waiting)

    def close(self) -> None:
        """Finishes what is queued and ends the thread."""
        if os.getpid() != self._process:  # the thread is another process's
            return
        with self._lock:
            self._closed = True
        self._thread.shutdown(wait=True)

    def _check_process(self) -> None:
        """A fork takes no threads along: work would be waited for for ever."""
        if os.getpid() != self._process:
            raise GenerationError(
                f"this engine was made in process {self._process}, and this is process {os.getpid()}, a fork of it "
                "that has no thread to run the model on: make an engine in each process after the fork (with gunicorn: "
                "without preload_app, or in post_fork), or start processes by spawn"
            )

    @torch.inference_mode()
    def _work(self) -> None:
        while (jobs := self._next()) is not None:
            for job in jobs:
                if job.future.set_running_or_notify_cancel():
                    self._go_on(job, job.task.begin(job.emit, job.cancelled))
            self._feed()
            for lane, error in self._decoder.step():
                self._go_on(*self._running.pop(id(lane)), error=error)

    def _next(self) -> Sequence[Job[Any]] | None:
        """What can begin now, of what is queued at this moment; None when there is nothing left to do."""
        with self._lock:
            if not self._waiting and not self._running and not self._feeding:
                self._awake = False
                return None
            begun = [job for job, _ in self._running.values()] + [job for job, _, _ in self._feeding]
            busy = {session for job in begun for session in job.task.sessions}
            room = self._max_batch - sum(job.task.decodes for job in begun)
            ready, waiting = list[Job[Any]](), list[Job[Any]]()
            for job in self._waiting:
                if busy.isdisjoint(job.task.sessions) and (room or not job.task.decodes):
                    ready.append(job)
                    room -= int(job.task.decodes)
                else:
                    waiting.append(job)
                busy |= job.task.sessions  # what comes later waits for this one, whether it begins now or not
            self._waiting = waiting
            return ready

    def _feed(self) -> None:
        """Feeds prompts, each a part in turn: a chunk of all, or all there is of the only one where nothing decodes."""
        alone = not self._running and len(self._feeding) == 1
        room = self._feeding[0][-1].tokens if alone else self._prefill_chunk
        chosen, parts = list[tuple[Job[Any], Steps[Any], Prompt]](), list[tuple[Prompt, int]]()
        while self._feeding and room > 0:
            prompt = self._feeding[0][-1]
            wanted = 0 if prompt.cancelled() else prompt.tokens
            if parts and room < min(wanted, PADDING):
                break  # so small a part would be padding mostly: it comes first the next time
            chosen.append(self._feeding.pop(0))  # it comes last again, if it has more
            parts.append((prompt, min(wanted, room)))
            room -= min(wanted, room)
        for (job, steps, _), error in zip(chosen, self._prefill.feed(parts), strict=True):
            self._go_on(job, steps, error=error)

    def _go_on(self, job: Job[Any], steps: Steps[Any], *, error: BaseException | None = None) -> None:
        """Carries work on to its next lane, to the next part of its prompt, or to its end."""
        try:
            step = next(steps) if error is None else steps.throw(error)
        except StopIteration as end:
            job.future.set_result(end.value)
        except BaseException as raised:
            job.future.set_exception(raised)
        else:
            if isinstance(step, Lane):
                self._running[id(step)] = job, steps
                self._decoder.add(step)
            else:
                self._feeding.append((job, steps, step))
