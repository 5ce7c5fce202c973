"""A long prompt lets others go on: it is fed in parts between their steps, and comes to the same."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from deltamem_agents import DeltaMemEngine, GenerationError, Message, Turn
from deltamem_agents.engine.prompts import divided
from deltamem_agents.engine.scheduler import CHUNK
from deltamem_agents.generation import Piece
from tests.engine.conftest import Start, model_for

LONG = "all about the user " * 40


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
