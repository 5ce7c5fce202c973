"""Lanes that join and leave while others decode: each gets what it would get alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltamem_agents import DeltaMemModel, GenerationOptions
from deltamem_agents.generation import Lane, Piece, Row, TextStream, can_batch, decode, feed
from deltamem_agents.generation.decode import Decoder, Ended
from tests.chat import byte_tokenizer, chat_model
from tests.engine.faults import before_forward, breakdown, slowed

PROMPTS = [[5, 6, 7, 8, 9], [50, 60], [9] * 40, list(range(3, 30)), [70, 71, 72], [33] * 12]
END, NEVER = [2], list[int]()
MORE = [Piece((5, 6, 7), True)]
T = TypeVar("T")


@pytest.fixture(scope="module")
def model() -> DeltaMemModel:
    return chat_model()


def lane(model: DeltaMemModel, prompt: Sequence[int], most: int, *, emit: Callable[[str], None] = len) -> Lane:
    options = GenerationOptions.parse({"max_new_tokens": most})
    row, logits = feed(model, Row(model.zero_state()), [Piece(tuple(prompt), True)])
    return Lane(row, logits, options, TextStream(byte_tokenizer()), True, emit, lambda: False)


@contextmanager
def noted(model: DeltaMemModel, look: Callable[[Mapping[str, Any]], T]) -> Iterator[list[T]]:
    """What there is to see in the arguments of each forward."""
    seen: list[T] = []
    handle = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(look(kwargs)), with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def run(decoder: Decoder, arrivals: Sequence[tuple[int, Lane]]) -> list[Ended]:
    """Adds each lane before the step of its number, and steps until all have ended."""
    ended, step = list[Ended](), 0
    while len(ended) < len(arrivals):
        for at, one in arrivals:
            if at == step:
                decoder.add(one)
        ended += decoder.step()
        step += 1
        assert step < 200
    return ended


@cache
def alone(model: DeltaMemModel, prompt: tuple[int, ...], most: int, ends: tuple[int, ...]) -> tuple[Lane, Tensor]:
    """The lane decoded by itself, and the logits after three tokens more."""
    one = lane(model, prompt, most)
    decode(model, [one], ends)
    return one, feed(model, one.row, MORE)[1]


def same(model: DeltaMemModel, one: Lane, prompt: Sequence[int], most: int, ends: Sequence[int] = END) -> None:
    expected, logits = alone(model, tuple(prompt), most, tuple(ends))
    assert (one.stream.ids, one.row.ids) == (expected.stream.ids, expected.row.ids)
    assert one.finish_reason == expected.finish_reason
    assert torch.allclose(one.row.state.tensor, expected.row.state.tensor, rtol=1e-4, atol=1e-5)
    assert torch.allclose(feed(model, one.row, MORE)[1], logits, rtol=1e-3, atol=1e-4)  # its own part of the cache


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 9), st.sampled_from(range(len(PROMPTS)))), min_size=1, max_size=6
    )
)
def test_whenever_they_come_and_go_lanes_get_what_they_get_alone(
    model: DeltaMemModel, plan: list[tuple[int, int, int]]
) -> None:
    lanes = [lane(model, PROMPTS[prompt], most) for _, most, prompt in plan]
    ended = run(Decoder(model, END), [(at, one) for (at, _, _), one in zip(plan, lanes, strict=True)])
    assert {id(one): error for one, error in ended} == {id(one): None for one in lanes}
    for (_, most, prompt), one in zip(plan, lanes, strict=True):
        same(model, one, PROMPTS[prompt], most)


def test_all_lanes_take_their_steps_together(model: DeltaMemModel) -> None:
    arrivals = [(number, lane(model, prompt, 10)) for number, prompt in enumerate(PROMPTS)]
    with noted(model, lambda given: len(given["input_ids"])) as rows:
        run(Decoder(model, NEVER), arrivals)
    assert rows == [1, 2, 3, 4, 5, 6, 6, 6, 6, 5, 4, 3, 2, 1]  # nine tokens of each are fed


def test_a_lane_that_ends_with_its_first_token_needs_no_step(model: DeltaMemModel) -> None:
    one = lane(model, PROMPTS[0], 1)
    with slowed(model, breakdown):
        assert run(Decoder(model, NEVER), [(0, one)]) == [(one, None)]
    assert one.finish_reason == "length"


def test_an_error_in_a_lane_ends_that_lane_only(model: DeltaMemModel) -> None:
    def emit(text: str) -> None:
        if len(broken.stream.ids) == 4:
            raise LookupError("the reader's own")

    broken = lane(model, PROMPTS[1], 9, emit=emit)
    good = lane(model, PROMPTS[2], 9)
    errors = {id(one): error for one, error in run(Decoder(model, NEVER), [(0, good), (1, broken)])}
    assert isinstance(errors[id(broken)], LookupError)
    assert errors[id(good)] is None
    same(model, good, PROMPTS[2], 9, NEVER)


def test_an_error_in_a_forward_ends_all_in_it_and_the_decoder_goes_on(model: DeltaMemModel) -> None:
    decoder = Decoder(model, NEVER)
    lanes = [lane(model, prompt, 9) for prompt in PROMPTS[:3]]
    with before_forward(model, 4, breakdown):
        ended = run(decoder, list(enumerate(lanes)))
    assert [one for one, _ in ended] == lanes
    assert all(isinstance(error, RuntimeError) for _, error in ended)
    later = lane(model, PROMPTS[3], 5)
    assert run(decoder, [(0, later)]) == [(later, None)]
    same(model, later, PROMPTS[3], 5, NEVER)


def test_padding_goes_when_the_longest_row_has_left(model: DeltaMemModel) -> None:
    lanes = [lane(model, PROMPTS[2], 4), lane(model, PROMPTS[0], 9), lane(model, PROMPTS[1], 9)]
    with noted(model, lambda given: given["past_key_values"].get_seq_length()) as widths:
        run(Decoder(model, NEVER), [(0, one) for one in lanes])
    assert widths == [40, 41, 42, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("family", ["Gemma2", "Lfm2"])
def test_caches_that_cannot_be_joined_take_their_steps_in_turn(family: str) -> None:
    model = chat_model(family)
    lanes = [lane(model, prompt, 5) for prompt in PROMPTS[:3]]
    assert not can_batch([lanes[0].row])
    with noted(model, lambda given: int(given["input_ids"][0, 0])) as calls:
        ended = run(Decoder(model, NEVER), [(0, one) for one in lanes])
    assert ended == [(one, None) for one in lanes]
    assert calls == [one.stream.ids[step] for step in range(4) for one in lanes]
    for one, prompt in zip(lanes, PROMPTS, strict=False):
        same(model, one, prompt, 5, NEVER)
