"""Nobody waits for the reply any more: the session is as it was before."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from deltamem_agents import DeltaMemEngine
from langchain_deltamem import ChatDeltaMem

LONG = 2000
"""Tokens that take seconds: nobody in these tests waits for the last."""


@pytest.fixture
def alice(model: ChatDeltaMem) -> ChatDeltaMem:
    """A session with one turn behind it, and a long reply ahead."""
    alice = model.with_session("alice")
    alice.invoke("hello")
    return alice.model_copy(update={"max_new_tokens": LONG})


@pytest.fixture
def head(engine: DeltaMemEngine) -> Callable[[], str | None]:
    """The session's head, once the engine has nothing left to do."""

    def read() -> str | None:
        engine.generate([{"role": "user", "content": "settle"}], max_new_tokens=1)
        info = engine.store.session("alice")
        return None if info is None else info.head

    return read


Head = Callable[[], str | None]


def test_leaving_a_stream(alice: ChatDeltaMem, head: Head) -> None:
    before = head()
    for _ in alice.stream("more"):
        break
    assert head() == before


def test_closing_a_stream_before_its_first_token(alice: ChatDeltaMem, head: Head) -> None:
    before = head()
    alice.stream("more").close()  # type: ignore[attr-defined]
    assert head() == before


def test_an_error_in_the_reader(alice: ChatDeltaMem, head: Head) -> None:
    before = head()

    def read() -> None:
        for _ in alice.stream("more"):
            raise KeyError

    with pytest.raises(KeyError):
        read()
    assert head() == before


def test_leaving_late_is_leaving(model: ChatDeltaMem, head: Head) -> None:
    """The engine may be done long before the reader: what counts is what was read."""
    stream = model.with_session("alice").stream("hello")
    next(stream)
    head()  # the whole reply has been generated now
    stream.close()  # type: ignore[attr-defined]
    assert head() is None


async def test_leaving_an_async_stream(alice: ChatDeltaMem, head: Head) -> None:
    before = head()
    async for _ in alice.astream("more"):
        break
    await asyncio.sleep(0.01)  # the loop closes what was left
    assert head() == before


async def test_closing_an_async_stream(alice: ChatDeltaMem, head: Head) -> None:
    before = head()
    stream = alice.astream("more")
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0.01)
    assert head() == before


@pytest.mark.parametrize("streaming", [False, True])
async def test_cancelling(alice: ChatDeltaMem, head: Head, streaming: bool) -> None:
    before = head()

    async def call() -> None:
        if not streaming:
            await alice.ainvoke("more")
        else:
            async for _ in alice.astream("more"):
                pass

    task = asyncio.create_task(call())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert head() == before


async def test_a_time_limit(alice: ChatDeltaMem, head: Head) -> None:
    before = head()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(alice.ainvoke("more"), 0.2)
    assert head() == before


async def test_cancelled_while_another_turn_runs(alice: ChatDeltaMem, head: Head, model: ChatDeltaMem) -> None:
    """A call that never got its turn."""
    before = head()
    running = asyncio.create_task(model.ainvoke("stateless", max_new_tokens=40))
    waiting = asyncio.create_task(alice.ainvoke("more"))
    await asyncio.sleep(0.02)
    waiting.cancel()
    await running
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert head() == before


def test_it_goes_on_afterwards(alice: ChatDeltaMem, engine: DeltaMemEngine, model: ChatDeltaMem) -> None:
    """What was left does not show in the next turn."""
    fresh = model.with_session("fresh")
    fresh.invoke("hello")
    next(iter(alice.stream("never mind")))
    replies = [one.invoke("more", max_new_tokens=6).content for one in (alice, fresh)]
    assert replies[0] == replies[1]
    assert engine.state("alice").tensor.allclose(engine.state("fresh").tensor, atol=1e-5)
