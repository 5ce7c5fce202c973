"""A turn for a client: counted, measured, and given up when the client goes away."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import TypeVar, cast

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deltamem_agents.engine import Turn
from deltamem_agents.engine.options import TurnOptions
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.messages import MessageLike
from deltamem_agents.serve.errors import ApiError, of_options
from deltamem_agents.serve.service import Service

T = TypeVar("T")
GONE = ApiError(499, "the client went away: the session is as it was before", code="client_gone")


async def turn_items(
    service: Service, messages: Sequence[MessageLike], options: TurnOptions, *, snapshot: str | None = None
) -> AsyncGenerator[str | Turn, None]:
    """A reply's text as it comes, then the turn; closing it early leaves the session as it was.

    Args:
        service: whose engine replies.
        messages: as in `EngineCalls.generate`.
        options: as well.
        snapshot: the id that the turn's snapshot is to have; None: any.

    Raises:
        ApiError: the options are bad, too many calls wait, or the server isn't ready.
        DeltaMemError: the turn failed.
    """
    engine = service.engine
    with service.gate.call():
        started = last = time.monotonic()
        try:
            items = cast("AsyncGenerator[str | Turn, None]", engine.astream(messages, snapshot=snapshot, **options))
        except DeltaMemError as error:
            raise of_options(error) from error
        first, whole = True, False
        try:
            async with aclosing(items):
                async for item in items:
                    now = time.monotonic()
                    if isinstance(item, Turn):
                        whole = True
                        service.metrics.turn(item, now - started)
                    else:
                        service.metrics.piece(now - last, first=first)
                        first, last = False, now
                    yield item
        except (asyncio.CancelledError, GeneratorExit):
            if not whole:  # whoever has the turn may close this at once
                service.metrics.left()
            raise


async def whole_turn(request: Request, items: AsyncGenerator[str | Turn, None]) -> Turn:
    """The turn at the end of its text; given up when the client goes away."""

    async def last() -> Turn:
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Turn):
                    return item
        raise AssertionError("a turn ends with itself")

    return await while_there(request, last())


async def begun(request: Request, items: AsyncGenerator[str | Turn, None]) -> AsyncIterator[str | Turn]:
    """Waits for the first item, so that what goes wrong before it has a status of its own; then gives all of them."""

    async def first() -> str | Turn:
        return await anext(items)

    head = await while_there(request, first())

    async def all_items() -> AsyncGenerator[str | Turn, None]:
        async with aclosing(items):
            yield head
            async for item in items:
                yield item

    return all_items()


async def while_there(request: Request, work: Coroutine[object, object, T]) -> T:
    """Awaits work for as long as the client waits for it, and no longer.

    Raises:
        ApiError: the client went away; the work was cancelled.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GONE
        return task.result()
    finally:
        for other in (task, gone):
            if not other.done():
                other.cancel()
                with suppress(asyncio.CancelledError):
                    await other


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events. However it ends, what it was made from is closed at once."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None], headers: dict[str, str]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
