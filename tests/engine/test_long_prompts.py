"""A long prompt lets others go on: it is fed in parts between their steps, and comes to the same."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from deltamem_agents import DeltaMemEngine, GenerationError, Message, Turn
from deltamem_agents.generation import Piece
from deltamem_agents.generation.prefill import divided
from tests.engine.conftest import Start, model_for
from tests.engine.faults import Gate, before_forward

LONG = "all about the user " * 40
CHUNK = 128
"""An engine's, where nobody says."""


def user(text: str) -> Message:
    return Message(role="user", content=text)


@contextmanager
def forwards(engine: DeltaMemEngine) -> Iterator[list[int]]:
    """How many tokens of each row every forward takes."""
    taken: list[int] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taken.append((kwargs.get("input_ids", args[0] if args else None)).shape[1])

    hook = engine.model.backbone.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield taken
    finally:
        hook.remove()


def test_alone_a_prompt_is_fed_at_once(start: Start) -> None:
    engine = start()
    with forwards(engine) as taken:
        turn = engine.generate([user(LONG)], session="a", max_new_tokens=3)
    assert taken[0] == turn.usage.prompt_tokens
    assert taken[1:] == [1, 1]


@pytest.mark.parametrize("granularity", ["token", "sentence_mean"])
def test_beside_others_it_is_fed_in_parts_and_comes_to_the_same(start: Start, granularity: str) -> None:
    engine = start(model_for(granularity=granularity))
    expected = [start(model_for(granularity=granularity), store=":memory:") for _ in range(2)]
    alone = [expected[0].generate([user(LONG)], session="a", max_new_tokens=5)]
    alone += [expected[1].generate([user(LONG[:300])], session="b", max_new_tokens=5)]
    decoding = engine.stream([user("hi")], session="other", max_new_tokens=600)
    next(decoding)
    turns: dict[str, Turn] = {}

    def talk(name: str, text: str) -> None:
        turns[name] = engine.generate([user(text)], session=name, max_new_tokens=5)

    with forwards(engine) as taken:
        threads = [threading.Thread(target=talk, args=pair) for pair in (("a", LONG), ("b", LONG[:300]))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for _ in decoding:
        pass
    parts = [place for place, size in enumerate(taken) if size > 1]
    assert len(parts) > 4
    if granularity == "token":  # a span is a forward of its own, and stays whole
        assert max(taken) <= CHUNK
        between = [taken[one + 1 : other] for one, other in zip(parts, parts[2:], strict=False)]
        assert all(1 in steps for steps in between)  # of any three parts in a row, a step of decoding lies between
    for turn, name, reference in zip(alone, "ab", expected, strict=True):
        assert turns[name].reply.content == turn.reply.content
        assert torch.allclose(engine.state(name).tensor, reference.state(name).tensor, atol=1e-4)


def _absorb(engine: DeltaMemEngine) -> None:
    engine.absorb([user(LONG)], session="a")


def _rebuild(engine: DeltaMemEngine) -> None:
    engine.rebuild("known")


def _forget(engine: DeltaMemEngine) -> None:
    engine.forget_message("known", f"{engine.log('known')[0].id}/0")


@pytest.mark.parametrize("work", [_absorb, _rebuild, _forget])
def test_texts_are_taken_in_by_parts_beside_others(start: Start, work: Callable[[DeltaMemEngine], None]) -> None:
    engine, alone = start(prefill_chunk=50), start(store=":memory:")
    for one in (engine, alone):
        one.absorb([user("It rains."), user(LONG)], session="known")
    before = engine.state("known")
    decoding = engine.stream([user("hi")], session="other", max_new_tokens=600)
    next(decoding)
    with forwards(engine) as taken:
        work(engine)
    for _ in decoding:
        pass
    parts = [place for place, size in enumerate(taken) if size > 1]
    assert len(parts) > 5
    assert max(taken) <= 50
    assert all(taken[one + 1 : other] == [1] for one, other in itertools.pairwise(parts))
    work(alone)
    for session in ("a", "known") if work is _absorb else ("known",):
        assert torch.allclose(engine.state(session).tensor, alone.state(session).tensor, atol=1e-4)
    assert torch.allclose(engine.state("known").tensor, before.tensor, atol=1e-4) == (work is not _forget)


def test_a_short_prompt_does_not_wait_for_the_whole_of_a_long_one(start: Start) -> None:
    engine = start()
    gate = Gate()
    held = threading.Thread(target=lambda: engine.on_session("x", gate))
    held.start()
    assert gate.reached.wait(60)
    ended: list[str] = []

    def talk(text: str) -> None:
        engine.generate([user(text)], max_new_tokens=1)
        ended.append(text)

    threads = [threading.Thread(target=talk, args=(text,)) for text in (LONG, "hi")]
    for number, thread in enumerate(threads, 1):
        thread.start()
        while engine.figures.waiting < number:
            time.sleep(0.001)
    gate.opened.set()
    for thread in (held, *threads):
        thread.join(60)
    assert ended == ["hi", LONG]


def test_a_caller_of_absorb_who_leaves_while_it_is_fed_leaves_no_trace(start: Start) -> None:
    async def leave() -> None:
        fed = asyncio.Event()
        loop = asyncio.get_running_loop()
        with before_forward(engine.model, 2, lambda: loop.call_soon_threadsafe(fed.set)):
            absorbing = asyncio.ensure_future(engine.aabsorb([user(LONG)], session="a"))
            await fed.wait()
            absorbing.cancel()
            await asyncio.gather(absorbing, return_exceptions=True)

    engine = start(prefill_chunk=8)
    decoding = engine.stream([user("hi")], max_new_tokens=900)
    next(decoding)
    asyncio.run(leave())
    for _ in decoding:
        pass
    assert engine.figures.running == 0
    assert engine.sessions() == []


def test_leaving_while_a_prompt_is_fed_leaves_the_session_as_it_was(start: Start) -> None:
    engine = start()
    decoding = engine.stream([user("hi")], max_new_tokens=900)
    next(decoding)
    items = engine.stream([user(LONG)], session="a", max_new_tokens=3)
    reader = threading.Thread(target=lambda: next(items, None))
    reader.start()
    reader.join(60)
    items.close()  # type: ignore[attr-defined]
    decoding.close()  # type: ignore[attr-defined]
    assert engine.sessions() == []
    assert engine.figures.waiting == 0
    engine.close()
    with pytest.raises(GenerationError, match="closed"):
        engine.generate([user("hi")])


def test_pieces_are_divided_where_they_can_be() -> None:
    pieces = [Piece((1, 2, 3), True), Piece((4, 5), True, (0, 0)), Piece((6, 7), False)]
    assert divided(pieces, 2) == ([Piece((1, 2), True)], [Piece((3,), True), *pieces[1:]])
    assert divided(pieces, 3) == (pieces[:1], pieces[1:])
    assert divided(pieces, 4) == (pieces[:2], pieces[2:])
    assert divided(pieces, 6) == ([*pieces[:2], Piece((6,), False)], [Piece((7,), False)])
    assert divided(pieces, 99) == (pieces, [])
