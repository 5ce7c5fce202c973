"""Compiled steps against the model's own forward: logits, memories and caches, whoever decodes beside whom."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents import DeltaMemModel, GenerationOptions
from deltamem_agents.backbone.int8 import quantized
from deltamem_agents.generation import Lane, Piece, Row, TextStream, feed
from deltamem_agents.generation.compiled import compiled_step, obstacle
from deltamem_agents.generation.decode import Decoder
from deltamem_agents.generation.rows import Batch, kv_tensors
from deltamem_agents.generation.slots import SlotBatch, joined
from tests.builders import MECHANISMS, adapted, tiny, tokens
from tests.chat import byte_tokenizer

IDS = [tuple(tokens(1, 9 + 4 * n, seed=n)[0].tolist()) for n in range(4)]
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "Llama": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "Llama 3": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Qwen2": ("Qwen2", {}),
    "Qwen3": ("Qwen3", {}),
}


@cache
def model_of(kind: str, mechanism: str = "gated", weights: str = "full", **options: object) -> DeltaMemModel:
    family, changes = KINDS[kind]
    backbone = tiny(family, **changes)
    if any(p.dim() == 1 for p in backbone.parameters()):
        generator = torch.Generator().manual_seed(1)
        for parameter in backbone.parameters():  # biases and norms that would be seen if they were left out
            if parameter.dim() == 1:
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    backbone = quantized(backbone) if weights == "int8" else backbone
    return adapted(backbone=backbone, **{**MECHANISMS[mechanism], **options})


def fed(model: DeltaMemModel, number: int) -> Row:
    return feed(model, Row(model.zero_state()), [Piece(IDS[number], True)])[0]


def assert_same(one: Row, other: Row) -> None:
    assert one.ids == other.ids
    torch.testing.assert_close(one.state.tensor, other.state.tensor, atol=1e-4, rtol=1e-4)
    assert (one.carry is None) == (other.carry is None)
    if one.carry is not None:
        torch.testing.assert_close(one.carry, other.carry, atol=1e-4, rtol=1e-4)
    assert one.cache is not None
    assert other.cache is not None
    for mine, its in zip(one.cache.layers, other.cache.layers, strict=True):
        for a, b in zip(kv_tensors(mine), kv_tensors(its), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def check(model: DeltaMemModel, numbers: Sequence[int], writes: Sequence[Sequence[bool]]) -> None:
    """Steps of both, from the same rows."""
    mine, its = (joined(model, [fed(model, n) for n in numbers], compiled=c) for c in (True, False))
    assert isinstance(mine, SlotBatch)
    assert isinstance(its, Batch)
    for number, write in enumerate(writes):
        step = [5 + (3 * number + place) % 80 for place in range(len(numbers))]
        torch.testing.assert_close(mine.step(step, write), its.step(step, write), atol=1e-3, rtol=1e-3)
    for place in range(len(numbers)):
        assert_same(mine.row(place), its.row(place))


@pytest.mark.parametrize("weights", ["full", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_family_decodes_as_its_own_forward(kind: str, weights: str) -> None:
    model = model_of(kind, weights=weights)
    check(model, [0], [[True]] * 3)
    check(model, [2, 0, 3], [[True, False, True], [False] * 3, [True] * 3])


@pytest.mark.parametrize("heads", [(), ("q",), ("o",), ("k", "v")])
@pytest.mark.parametrize("mode", ["standard", "lambda_outside", "no_lambda"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_each_mechanism_decodes_as_the_layers_do(mechanism: str, mode: str, heads: tuple[str, ...]) -> None:
    if not heads:
        heads = ("q", "k", "v", "o")
    options = {"state_update_mode": mode, "delta_heads": heads, "couple_lambda": mode == "standard"}
    check(model_of("Llama", mechanism, **options), [1, 2], [[True, False], [False, False], [True, True]])


def test_a_memory_on_some_layers_only() -> None:
    check(model_of("Llama", target_layers=(1,)), [1, 0], [[True, True]] * 2)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@given(data=st.data())
@settings(max_examples=15)
def test_rows_that_come_and_go_are_as_if_alone(mechanism: str, data: st.DataObject) -> None:
    model = model_of("Llama", mechanism)
    with torch.inference_mode():
        waiting = {n: fed(model, n) for n in range(4)}
        alone = {n: Batch(model, [fed(model, n)]) for n in waiting}
        inside, batch = list[int](), None
        for _ in range(data.draw(st.integers(2, 8))):
            new = sorted(data.draw(st.sets(st.sampled_from(sorted(waiting))))) if waiting else []
            keep = data.draw(st.permutations(inside)) if inside else []
            keep = keep[: data.draw(st.integers(0, len(keep)))]
            for place, n in enumerate(inside):
                if n not in keep:
                    assert batch is not None
                    assert_same(batch.row(place), alone[n].row(0))
            rows = [waiting.pop(n) for n in new]
            if batch is not None and keep:
                batch = batch.reformed([inside.index(n) for n in keep], rows)
            else:
                batch = joined(model, rows) if rows else None
            inside = [*keep, *new]
            if batch is not None:
                assert isinstance(batch, SlotBatch)
                step = [(data.draw(st.integers(3, 90)), data.draw(st.booleans())) for _ in inside]
                logits = batch.step([token for token, _ in step], [write for _, write in step])
                for n, (token, write), mine in zip(inside, step, logits, strict=True):
                    torch.testing.assert_close(mine, alone[n].step([token], [write])[0], atol=1e-3, rtol=1e-3)


def test_slots_grow_with_their_rows() -> None:
    model = model_of("Llama")
    check(model, [0, 1], [[True, False]] * 80)


def test_rows_that_join_leave_the_others_where_they_are() -> None:
    model = model_of("Llama")
    batch = joined(model, [fed(model, 3), fed(model, 0), fed(model, 1)])
    assert isinstance(batch, SlotBatch)
    before = batch._cache.data_ptr()
    assert batch.reformed([0, 2], [fed(model, 2)]) is batch
    assert batch._cache.data_ptr() == before
    assert batch._slots == [0, 2, 1]


def test_greedy_replies_are_those_of_the_models_own_forward() -> None:
    model = model_of("Qwen3")

    def replies(compiled: bool) -> list[list[int]]:
        lanes = []
        for n in range(4):
            row, logits = feed(model, Row(model.zero_state()), [Piece(IDS[n], True)])
            options = GenerationOptions.parse({"max_new_tokens": 6 + 5 * n})
            lanes.append(Lane(row, logits, options, TextStream(byte_tokenizer()), True, len, lambda: False))
        decoder = Decoder(model, [2], compiled=compiled)
        for lane in lanes[:2]:
            decoder.add(lane)
        ended = decoder.step()
        for lane in lanes[2:]:
            decoder.add(lane)
        while len(ended) < len(lanes):
            ended += decoder.step()
        assert all(error is None for _, error in ended)
        return [lane.stream.ids for lane in lanes]

    assert replies(compiled=True) == replies(compiled=False)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: adapted("Gemma2"), "it is a Gemma2ForCausalLM, not one of"),
        (lambda: adapted("Mistral"), "sliding window"),
        (lambda: adapted(backbone=tiny(hidden_act="gelu")), "computes gelu"),
        (lambda: adapted(backbone=tiny().to(torch.bfloat16)), "not all float32 or int8"),
        (lambda: adapted(trainable_delta_scale="layer"), "adapter scales"),
    ],
)
def test_what_cannot_be_compiled_is_decoded_by_its_own_forward(model: object, reason: str) -> None:
    made: DeltaMemModel = model()  # type: ignore[operator]
    assert reason in str(obstacle(made))
    assert compiled_step(made) is None
    row, _ = feed(made, Row(made.zero_state()), [Piece(IDS[0], True)])
    batch = joined(made, [row])
    assert isinstance(batch, Batch)
    assert batch.step([5], [True]).shape == (1, made.backbone.config.vocab_size)


def test_who_hooks_a_model_sees_its_forwards() -> None:
    model = adapted()
    batch = joined(model, [fed(model, 0), fed(model, 1)])
    assert isinstance(batch, SlotBatch)
    handle = model.backbone.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert isinstance(batch.reformed([0, 1]), Batch)
    assert isinstance(joined(model, [fed(model, 2)]), Batch)
    handle.remove()
    assert isinstance(joined(model, [fed(model, 2)]), SlotBatch)


def test_weights_that_move_are_found_again() -> None:
    model = adapted()
    first = compiled_step(model)
    assert compiled_step(model) is first
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.data = 1.5 * parameter.data
    assert compiled_step(model) is not first
    check(model, [0], [[True]])


def test_rows_of_another_model_are_refused_as_ever() -> None:
    model, other = adapted(), adapted(num_state_heads=3)
    batch = joined(model, [fed(other, 0)])
    assert isinstance(batch, Batch)
    with pytest.raises(Exception, match="expected"):
        batch.step([5], [True])
