"""Turns on the model thread, for callers on any thread or event loop."""

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from threading import Event

import torch

from deltamem_agents.engine.records import Request, Turn
from deltamem_agents.engine.turns import Decoded, TurnRunner, cancelled_error
from deltamem_agents.engine.worker import Emit, Work, Worker
from deltamem_agents.errors import DeltaMemError, GenerationError
from deltamem_agents.generation import decode


class TurnService:
    """Queues turns for the one thread that owns the model.

    Args:
        runner: carries the turns out.
        ends: token ids that end a reply.
    """

    def __init__(self, runner: TurnRunner, ends: Collection[int]) -> None:
        self._runner, self._ends = runner, ends
        self._worker = Worker("deltamem")

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
        """Many turns, decoded together."""
        return self._worker.run(lambda emit, cancelled: self._run_waves(requests, cancelled))

    def absorb(self, request: Request) -> str:
        """Writes messages without a reply; gives the id of the snapshot."""

        def work(emit: Emit, cancelled: Event) -> str:
            with torch.inference_mode(), _model_errors():
                return self._runner.absorb(request)

        return self._worker.run(work)

    def forget(self, session: str) -> None:
        """Deletes a session, after the turns that are queued."""

        def work(emit: Emit, cancelled: Event) -> None:
            self._runner.drop_warm(session)
            self._runner.store.forget(session)

        self._worker.run(work)

    def close(self) -> None:
        """Finishes queued work and ends the thread."""
        self._worker.close()

    def _turn(self, request: Request) -> Work[Turn]:
        return lambda emit, cancelled: self._run([request], emit, cancelled)[0]

    def _decoding(self, request: Request) -> Work[list[Decoded]]:
        return lambda emit, cancelled: self._decode([request], emit, cancelled)

    def _finishing(self, decoded: Sequence[Decoded]) -> Work[Turn]:
        return lambda emit, cancelled: self._finish(decoded, cancelled)[0]

    def _run_waves(self, requests: Sequence[Request], cancelled: Event) -> list[Turn]:
        """Waves of distinct sessions, so that turns of one session follow each other."""
        turns: dict[int, Turn] = {}
        waiting = list(range(len(requests)))
        while waiting:
            wave, busy, later = [], set[str | None](), []
            for index in waiting:
                session = requests[index].session
                if session is not None and session in busy:
                    later.append(index)
                else:
                    wave.append(index)
                    busy.add(session)
            done = self._run([requests[i] for i in wave], lambda text: None, cancelled)
            turns |= dict(zip(wave, done, strict=True))
            waiting = later
        return [turns[index] for index in range(len(requests))]

    def _run(self, requests: Sequence[Request], emit: Emit, cancelled: Event) -> list[Turn]:
        return self._finish(self._decode(requests, emit, cancelled), cancelled)

    @torch.inference_mode()
    def _decode(self, requests: Sequence[Request], emit: Emit, cancelled: Event) -> list[Decoded]:
        if cancelled.is_set():
            raise cancelled_error()
        with _model_errors():
            prepared = [self._runner.prepare(request) for request in requests]
            lanes = [self._runner.lane(p, emit, cancelled.is_set) for p in prepared]
            decode(self._runner.model, lanes, self._ends)
        return list(zip(prepared, lanes, strict=True))

    @torch.inference_mode()
    def _finish(self, decoded: Sequence[Decoded], cancelled: Event) -> list[Turn]:
        with _model_errors():
            return [self._runner.finish(prepared, lane, cancelled.is_set) for prepared, lane in decoded]


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
