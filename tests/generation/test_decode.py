"""Decoding, held against transformers' own."""

from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel, set_seed

from deltamem_agents import DeltaMemModel, GenerationOptions
from deltamem_agents.generation import Lane, Piece, Row, Sampler, TextStream, can_batch, decode, feed
from tests.builders import adapted
from tests.chat import VOCABULARY, byte_tokenizer, chat_backbone, chat_model
from tests.generation.lanes import lane as constrained

PROMPTS = [[5, 6, 7, 8, 9], [50, 60], [9] * 40, list(range(3, 30))]
END = 2


@pytest.fixture(scope="module")
def model() -> DeltaMemModel:
    return chat_model()


@pytest.fixture(scope="module")
def frozen() -> PreTrainedModel:
    return chat_backbone()


def lane(model: DeltaMemModel, prompt: Sequence[int], *, write: bool = False, **options: object) -> Lane:
    parsed = GenerationOptions.parse(options)
    row, logits = feed(model, Row(model.zero_state()), [Piece(tuple(prompt), write)])
    return Lane(row, logits, parsed, TextStream(byte_tokenizer(), parsed.stop), write, lambda text: None, lambda: False)


def decoded(model: DeltaMemModel, prompt: Sequence[int], ends: Sequence[int] = (END,), **options: object) -> list[int]:
    one = lane(model, prompt, **options)
    decode(model, [one], ends)
    return one.stream.ids


def generated(frozen: PreTrainedModel, prompt: list[int], end: int = END, **options: object) -> list[int]:
    out = frozen.generate(torch.tensor([prompt]), eos_token_id=end, pad_token_id=0, **options)  # type: ignore[arg-type]
    reply = out[0, len(prompt) :].tolist()
    return reply[: reply.index(end)] if end in reply else reply


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_is_transformers_greedy(model: DeltaMemModel, frozen: PreTrainedModel, prompt: list[int]) -> None:
    assert decoded(model, prompt, max_new_tokens=20) == generated(frozen, prompt, max_new_tokens=20, do_sample=False)


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.5])
def test_repetition_penalty_is_transformers(model: DeltaMemModel, frozen: PreTrainedModel, penalty: float) -> None:
    options = {"repetition_penalty": penalty, "max_new_tokens": 20}
    assert decoded(model, PROMPTS[2], **options) == generated(frozen, PROMPTS[2], do_sample=False, **options)


def test_an_end_token_ends_the_reply(model: DeltaMemModel, frozen: PreTrainedModel) -> None:
    whole = decoded(model, PROMPTS[3], max_new_tokens=20)
    end = whole[5]
    ended = decoded(model, PROMPTS[3], ends=[end], max_new_tokens=20)
    assert ended == whole[: whole.index(end)] == generated(frozen, PROMPTS[3], end, max_new_tokens=20, do_sample=False)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 2.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2},
        {"temperature": 1.0, "top_p": 1.0},
    ],
)
def test_sampling_is_transformers(model: DeltaMemModel, frozen: PreTrainedModel, options: dict[str, float]) -> None:
    """The same random numbers choose the same tokens."""
    for prompt in PROMPTS[:3]:
        set_seed(7)
        expected = generated(frozen, prompt, max_new_tokens=15, do_sample=True, **{"top_k": 0, **options})
        assert decoded(model, prompt, max_new_tokens=15, seed=7, **options) == expected


def test_sampling_with_a_seed_repeats_and_without_does_not(model: DeltaMemModel) -> None:
    options = {"temperature": 5.0, "max_new_tokens": 20}
    first = decoded(model, PROMPTS[0], seed=3, **options)
    assert decoded(model, PROMPTS[0], seed=3, **options) == first
    assert decoded(model, PROMPTS[0], seed=4, **options) != first
    assert decoded(model, PROMPTS[0], **options) != decoded(model, PROMPTS[0], **options)


def test_temperature_zero_is_greedy(model: DeltaMemModel) -> None:
    options = {"max_new_tokens": 8}
    assert decoded(model, PROMPTS[0], temperature=0, top_p=0.5, **options) == decoded(model, PROMPTS[0], **options)


def test_sampling_leaves_the_global_random_numbers_alone(model: DeltaMemModel) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    decoded(model, PROMPTS[0], temperature=1.0, max_new_tokens=3)
    decoded(model, PROMPTS[0], temperature=1.0, max_new_tokens=3, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("most", [1, 2, 7])
def test_max_new_tokens(model: DeltaMemModel, most: int) -> None:
    one = lane(model, PROMPTS[3], max_new_tokens=most)
    decode(model, [one], [END])
    assert (len(one.stream.ids), one.finish_reason) == (most, "length")
    assert one.row.ids == (*PROMPTS[3], *one.stream.ids[:-1])


def test_a_cancelled_lane_stops_before_its_next_token(model: DeltaMemModel) -> None:
    one, other = lane(model, PROMPTS[3], max_new_tokens=20), lane(model, PROMPTS[2], max_new_tokens=20)
    one.cancelled = lambda: len(one.stream.ids) >= 3
    decode(model, [one, other], [END])
    assert (len(one.stream.ids), one.finish_reason) == (3, "cancelled")
    assert other.stream.ids == decoded(model, PROMPTS[2], max_new_tokens=20)


@pytest.mark.parametrize("write", [False, True])
def test_lanes_together_are_what_each_is_alone(model: DeltaMemModel, write: bool) -> None:
    def lanes() -> list[Lane]:
        return [lane(model, p, write=write, max_new_tokens=n) for p, n in zip(PROMPTS, (3, 20, 9, 1), strict=True)]

    together, alone = lanes(), lanes()
    assert can_batch([one.row for one in together])
    decode(model, together, [END])
    for one in alone:
        decode(model, [one], [END])
    for a, b in zip(together, alone, strict=True):
        assert (a.stream.ids, a.row.ids, a.finish_reason) == (b.stream.ids, b.row.ids, b.finish_reason)
        assert torch.allclose(a.row.state.tensor, b.row.state.tensor, rtol=1e-4, atol=1e-5)
        again = [feed(model, one.row, [Piece((5, 6, 7), write)])[1] for one in (a, b)]  # its own part of the cache
        assert torch.allclose(*again, rtol=1e-3, atol=1e-4)


def test_rows_that_write_and_rows_that_do_not_share_a_batch(model: DeltaMemModel) -> None:
    kinds = [(PROMPTS[0], True), (PROMPTS[1], False), (PROMPTS[2], True), (PROMPTS[3], False)]
    lanes, alone = ([lane(model, p, write=on, max_new_tokens=6) for p, on in kinds] for _ in range(2))
    decode(model, lanes, [END])
    for a, b in zip(lanes, alone, strict=True):
        decode(model, [b], [END])
        assert a.stream.ids == b.stream.ids
        assert torch.allclose(a.row.state.tensor, b.row.state.tensor, rtol=1e-4, atol=1e-5)
    assert not lanes[1].row.state.tensor.any()


def test_long_prompts_are_fed_in_chunks() -> None:
    model = adapted(backbone=chat_backbone(context=8192))
    ids = torch.randint(3, VOCABULARY, (2500,), generator=torch.Generator().manual_seed(0)).tolist()
    pieces = [Piece(tuple(ids[:1000]), True), Piece(tuple(ids[1000:]), False)]
    row, logits = feed(model, Row(model.zero_state()), pieces)
    mask = torch.tensor([[number < 1000 for number in range(2500)]])
    whole = model(torch.tensor([ids]), write=mask, logits_to_keep=1)
    assert torch.allclose(logits, whole.logits[0, -1], rtol=1e-3, atol=1e-3)
    assert torch.allclose(row.state.tensor, whole.state.tensor, rtol=1e-3, atol=1e-5)
    assert row.ids == tuple(ids)
    assert row.cache_bytes == 2 * 2 * 2 * 8 * 2500 * 4  # layers, keys and values, heads, head size, tokens, float32


def test_sampler_takes_whatever_has_any_probability() -> None:
    options = GenerationOptions.parse({"temperature": 0.01, "seed": 0})
    assert Sampler(options, torch.device("cpu")).choose([1], torch.tensor([0.0, 50.0, 1.0])) == 1


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_reply_that_holds_no_run_twice(size: int, model: DeltaMemModel) -> None:
    """It may quote the prompt, and it goes on as it would up to the first repetition."""
    free = decoded(model, PROMPTS[2], ends=(), max_new_tokens=60)
    held = decoded(model, PROMPTS[2], ends=(), max_new_tokens=60, no_repeat_ngram_size=size)
    runs = [tuple(held[at : at + size]) for at in range(len(held) - size + 1)]
    assert len(set(runs)) == len(runs) == 61 - size
    whole = [tuple(free[at : at + size]) for at in range(len(free) - size + 1)]
    first = next((n for n, run in enumerate(whole) if run in whole[:n]), len(whole))
    assert held[: first + size - 1] == free[: first + size - 1]
    assert decoded(model, PROMPTS[2], ends=(), max_new_tokens=60, no_repeat_ngram_size=0) == free


def test_what_a_reply_is_held_to_comes_first(model: DeltaMemModel) -> None:
    pairs = {"type": "regex", "regex": "(ab){9}"}
    for size in (0, 2):
        one = constrained(model, PROMPTS[0], max_new_tokens=40, response_format=pairs, no_repeat_ngram_size=size)
        decode(model, [one], (END,))
        assert one.stream.text == "ab" * 9
