"""Turns on the model thread, for callers on any thread or event loop."""

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from threading import Event
from typing import TypeVar

from deltamem_agents.engine.records import EngineFigures, Request, Turn
from deltamem_agents.engine.scheduler import Emit, Scheduler, Steps, Task
from deltamem_agents.engine.turns import Decoded, Feeding, TurnRunner, cancelled_error
from deltamem_agents.engine.worker import Worker
from deltamem_agents.errors import DeltaMemError, GenerationError
from deltamem_agents.generation import Prefill
from deltamem_agents.generation.decode import Decoder

T = TypeVar("T")


class TurnService:
    """Queues turns for the one thread that owns the model, where those of different sessions decode together.

    Args:
        runner: carries the turns out.
        max_batch: how many turns decode at once, at most.
        prefill_chunk: how many tokens of prompts are fed between two steps of decoding, at most.
    """

    def __init__(self, runner: TurnRunner, *, max_batch: int, prefill_chunk: int) -> None:
        self._runner = runner
        decoder = Decoder(runner.model, runner.ends)
        prefill = Prefill(runner.model)
        self._worker = Worker(Scheduler(decoder, prefill, max_batch=max_batch, prefill_chunk=prefill_chunk))

    @property
    def figures(self) -> EngineFigures:
        """How much there is to do, and what has been counted."""
        running, waiting = self._worker.load
        return EngineFigures(running, waiting, self._runner.cold_replays, self._runner.conflicts)

    def run(self, request: Request) -> Turn:
        """One turn."""
        return self._worker.run(self._turn(request))

    async def arun(self, request: Request) -> Turn:
        """One turn, for an event loop."""
        return await self._worker.arun(self._turn(request))

    def stream(self, request: Request) -> Iterator[str | Turn]:
        """One turn's text as it comes; the turn itself is committed when the reader asks for it."""
        with closing(self._worker.stream(self._decoding(request))) as items:
            for item in items:
                yield item if isinstance(item, str) else self._worker.run(self._finishing(item))

    async def astream(self, request: Request) -> AsyncIterator[str | Turn]:
        """`stream` for an event loop."""
        async with aclosing(self._worker.astream(self._decoding(request))) as items:
            async for item in items:
                yield item if isinstance(item, str) else await self._worker.arun(self._finishing(item))

    def batch(self, requests: Sequence[Request]) -> list[Turn]:
        """Many turns, queued at once. The first error ends those that are not complete, and is raised."""
        return self._worker.run_all([self._turn(request) for request in requests])

    def absorb(self, request: Request) -> str:
        """Writes messages without a reply; gives the id of the snapshot."""
        return self._worker.run(self._absorbing(request))

    async def aabsorb(self, request: Request) -> str:
        """`absorb` for an event loop."""
        return await self._worker.arun(self._absorbing(request))

    def forget(self, session: str) -> None:
        """Deletes a session, after the turns that are queued."""

        def forget() -> None:
            self._runner.drop_warm(session)
            self._runner.store.forget(session)

        self.call(forget, sessions=[session])

    def drop_warm(self, session: str) -> None:
        """Lets go of a session's KV cache; on the model thread only."""
        self._runner.drop_warm(session)

    def call(self, function: Callable[[], T], *, sessions: Collection[str] = ()) -> T:
        """Calls a function on the model thread, without gradients, between two steps of decoding.

        Args:
            function: what to call; it must not call the service.
            sessions: those it works on: it waits for what was queued on them before, and what comes later waits for it.
        """

        def work(_: Callable[[], bool]) -> Feeding[T]:
            return function()
            yield  # never reached: it makes this a generator

        return self.carry(work, sessions=sessions)

    def carry(self, work: Callable[[Callable[[], bool]], Feeding[T]], *, sessions: Collection[str]) -> T:
        """Carries work out on the model thread, that of others between its parts.

        Args:
            work: gets a function that tells whether nobody waits any more.
            sessions: those it works on, as for `call`.
        """
        return self._worker.run(_work(work, frozenset(sessions)))

    def close(self) -> None:
        """Finishes queued work and ends the thread."""
        self._worker.close()

    def _turn(self, request: Request) -> Task[Turn]:
        def begin(emit: Emit, cancelled: Event) -> Steps[Turn]:
            decoded = yield from self._decode(request, emit, cancelled)
            return (yield from self._finish(decoded, cancelled))

        return Task(begin, _sessions(request), decodes=True)

    def _decoding(self, request: Request) -> Task[Decoded]:
        return Task(lambda emit, cancelled: self._decode(request, emit, cancelled), _sessions(request), decodes=True)

    def _finishing(self, decoded: Decoded) -> Task[Turn]:
        return Task(lambda _, cancelled: self._finish(decoded, cancelled), _sessions(decoded[0].request))

    def _absorbing(self, request: Request) -> Task[str]:
        return _work(lambda cancelled: self._runner.absorb(request, cancelled), _sessions(request))

    def _decode(self, request: Request, emit: Emit, cancelled: Event) -> Steps[Decoded]:
        if cancelled.is_set():
            raise cancelled_error()
        with _model_errors():
            prepared = yield from self._runner.prepare(request, cancelled.is_set)
            lane = self._runner.lane(prepared, emit, cancelled.is_set)
            yield lane
            if lane.finish_reason is None or lane.finish_reason == "cancelled":
                raise cancelled_error()
            return prepared, lane, self._runner.reply(prepared, lane)

    def _finish(self, decoded: Decoded, cancelled: Event) -> Steps[Turn]:
        with _model_errors():
            return (yield from self._runner.finish(*decoded, cancelled.is_set))


def _sessions(request: Request) -> frozenset[str]:
    """Those whose memory the request is about."""
    return frozenset([request.session] if request.session is not None and request.remembers else [])


def _work(work: Callable[[Callable[[], bool]], Feeding[T]], sessions: frozenset[str]) -> Task[T]:
    """Work without a lane."""

    def begin(_: Emit, cancelled: Event) -> Steps[T]:
        if cancelled.is_set():
            raise cancelled_error()
        with _model_errors():
            return (yield from work(cancelled.is_set))

    return Task(begin, sessions)


@contextmanager
def _model_errors() -> Iterator[None]:
    """Out of memory and the like, as our own error."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DeltaMemError):
            raise
        raise GenerationError(
            f"the model failed ({type(error).__name__}: {error}): the session is as it was before; if memory ran out, "
            "use fewer recent_messages, a smaller max_prompt_tokens or a smaller batch"
        ) from error
