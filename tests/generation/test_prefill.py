"""Prompts fed together: each row is what it is when it is fed alone, whatever the others are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents import DeltaMemModel
from deltamem_agents.errors import StateError
from deltamem_agents.generation import Piece, Prefill, Prompt, Row, feed
from deltamem_agents.generation.prefill import PADDING, SPREAD
from tests.builders import MECHANISMS, adapted, tokens
from tests.generation.test_rows import same

KINDS = {
    "published": {**MECHANISMS["published"]},
    "gated": {**MECHANISMS["gated"]},
    "gated, Qwen3": {"family": "Qwen3", **MECHANISMS["gated"]},
    "gated, OPT": {"family": "OPT", **MECHANISMS["gated"]},
    "gated, windows": {"family": "Gemma2", **MECHANISMS["gated"]},
    "gated, spans": {"write_granularity": "message_mean", **MECHANISMS["gated"]},
}
SHARE = [kind for kind in KINDS if kind != "gated, windows"]


@cache
def model_of(kind: str) -> DeltaMemModel:
    return adapted(**KINDS[kind])  # type: ignore[arg-type]


def never() -> bool:
    return False


@contextmanager
def rows_of(model: DeltaMemModel) -> Iterator[list[int]]:
    """How many rows each forward has."""
    seen: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def ids_of(length: int, seed: int) -> tuple[int, ...]:
    return tuple(tokens(1, length, seed=seed)[0].tolist())


def prompts(model: DeltaMemModel, lengths: Sequence[int]) -> list[Prompt]:
    zero = model.zero_state
    return [Prompt(Row(zero()), [Piece(ids_of(n, n), True)], never) for n in lengths]


@st.composite
def told(draw: st.DrawFn, spans: bool) -> list[Piece]:
    """What is fed to one row at once: some pieces, written or not, or each one span."""
    pieces = draw(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.integers(0, 99)), min_size=1, max_size=3))
    return [
        Piece(ids_of(length, seed), write, (0,) * length if spans and write else None) for length, write, seed in pieces
    ]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=25)
def test_together_is_as_one_by_one(kind: str, data: st.DataObject) -> None:
    """Rounds in which any of the rows get something: cold rows beside warm ones, in parts, logits after each round."""
    model, prefill = model_of(kind), Prefill(model_of(kind))
    count = data.draw(st.integers(2, 4))
    with torch.inference_mode():
        rows, alone = ([Row(model.zero_state()) for _ in range(count)] for _ in range(2))
        for _ in range(data.draw(st.integers(1, 3))):
            chosen = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
            made = {n: data.draw(told(spans="spans" in kind)) for n in chosen}
            fed = [Prompt(rows[n], list(made[n]), never) for n in chosen]
            while left := [prompt for prompt in fed if prompt.left]:
                parts = [(prompt, data.draw(st.integers(1, prompt.tokens))) for prompt in left]
                assert prefill.feed(parts) == [None] * len(parts)
            for n, prompt in zip(chosen, fed, strict=True):
                rows[n] = prompt.row
                alone[n], logits = feed(model, alone[n], made[n])
                assert prompt.logits is not None
                assert torch.allclose(prompt.logits, logits, atol=1e-4)
        for mine, its in zip(rows, alone, strict=True):
            assert mine.cache is None or same(mine, its)


@pytest.mark.parametrize("kind", SHARE)
def test_rows_of_about_one_length_share_a_forward(kind: str) -> None:
    model = model_of(kind)
    fed, prefill = prompts(model, [9, 5, 7, 5]), Prefill(model)
    with rows_of(model) as seen:
        prefill.feed([(prompt, 99) for prompt in fed])
        assert seen == [1, 3]  # what a new cache is like is seen by the first
        more = [*prompts(model, [3]), *(Prompt(prompt.row, [Piece((5, 6), True)], never) for prompt in fed)]
        prefill.feed([(prompt, 99) for prompt in more])
        assert seen == [1, 3, 5]


@pytest.mark.parametrize(("kind", "lengths"), [("gated, windows", (4, 4, 4)), ("gated", (70, 70 - PADDING - 1, 2))])
def test_others_have_forwards_of_their_own(kind: str, lengths: tuple[int, ...]) -> None:
    model, prefill = model_of(kind), Prefill(model_of(kind))
    prefill.feed([(prompt, 1) for prompt in prompts(model, [1])])
    with rows_of(model) as seen:
        prefill.feed([(prompt, 99) for prompt in prompts(model, lengths)])
    assert seen == [1, 1, 1]


def test_a_long_cache_is_not_paid_for_by_short_ones() -> None:
    model = model_of("gated")
    prefill = Prefill(model)
    long, *short = prompts(model, [SPREAD + 20, 7, 7])
    prefill.feed([(long, 999)])
    long.left = [Piece((5,) * 7, True)]
    with rows_of(model) as seen:
        prefill.feed([(prompt, 99) for prompt in (long, *short)])
    assert sorted(seen) == [1, 2]


def test_nothing_is_fed_of_a_prompt_that_is_given_no_room() -> None:
    model = model_of("gated")
    first, second = prompts(model, [5, 6])
    assert Prefill(model).feed([(first, 0), (second, 4)]) == [None, None]
    assert (first.tokens, first.row.ids, first.logits) == (5, (), None)
    assert (second.tokens, second.row.ids) == (2, ids_of(6, 6)[:4])


def test_an_error_is_that_of_the_prompts_in_the_forward() -> None:
    """A row of another adapter spoils its own forward, and the one that it shares; the others are fed."""
    model, prefill = model_of("gated"), Prefill(model_of("gated"))
    prefill.feed([(prompt, 1) for prompt in prompts(model, [1])])
    good, bad, beside = prompts(model, [5 + PADDING + 1, 5, 5])
    bad.row = Row(model_of("published").zero_state(), carry=torch.zeros(1, 2, 99))
    fine, *spoiled = prefill.feed([(prompt, 99) for prompt in (good, bad, beside)])
    assert fine is None
    assert good.logits is not None
    assert spoiled[0] is spoiled[1]
    assert isinstance(spoiled[0], StateError)
