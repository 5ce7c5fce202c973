"""A layer against the paper's equations written out token by token, and spans against means by hand."""

import itertools

import pytest
import torch
from hypothesis import assume, currently_in_test_context, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltamem_agents.config import DeltaMemConfig, StateUpdateMode
from deltamem_agents.layer import DeltaMemLayer, LayerOutput, LayerShape
from tests.builders import MECHANISMS
from tests.truth import Truth, by_the_book, floor, weights_of

SHAPE = LayerShape(hidden=12, q=16, k=8, v=8, o=12)
MODES: tuple[StateUpdateMode, ...] = ("standard", "lambda_outside", "no_lambda")
mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)
MODES_AND_GATES = list(itertools.product(MODES, [True, False], [True, False], [True, False]))


def random_layer(seed: int = 0, **options: object) -> DeltaMemLayer:
    layer = DeltaMemLayer(DeltaMemConfig.parse({"rank": 3, "num_state_heads": 2, **options}), SHAPE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return layer


def inputs(rows: int = 2, length: int = 7, rank: int = 3, *, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, SHAPE.hidden, generator=generator)
    return hidden, torch.randn(rows, 2, rank, rank, generator=generator)


def truth(layer: DeltaMemLayer, hidden: Tensor, state: Tensor, **arguments: Tensor | None) -> Truth:
    found = by_the_book(weights_of(layer), layer.config, hidden, state, **arguments)
    if currently_in_test_context():
        assume(found.margin > 1e-5)
    assert found.margin > 1e-5, "take another seed"
    return found


def assert_close(found: LayerOutput, expected: Truth) -> None:
    for one, other in ((found.reads, expected.reads), (found.state, expected.state), (found.carry, expected.carry)):
        if one is None:
            assert other is None
            continue
        assert one.dtype == torch.float32
        assert torch.allclose(one, other.float(), atol=1e-5, rtol=1e-5)


class TestTokenWrites:
    @pytest.mark.parametrize(("mode", "coupled", "rankwise", "normalised"), MODES_AND_GATES)
    @pytest.mark.parametrize("grad", [True, False])
    @mechanism
    def test_equations(
        self, mode: str, coupled: bool, rankwise: bool, normalised: bool, grad: bool, mechanism: str
    ) -> None:
        layer = random_layer(
            state_update_mode=mode,
            couple_lambda=coupled,
            rankwise_gates=rankwise,
            normalize_qk=normalised,
            **MECHANISMS[mechanism],
        )
        hidden, state = inputs()
        hidden = hidden if normalised else hidden / 3  # a rule without unit keys diverges
        with torch.set_grad_enabled(grad):
            assert_close(layer(hidden, state), truth(layer, hidden, state))

    @mechanism
    @settings(max_examples=15)
    @given(length=st.integers(0, 70), rank=st.integers(1, 6), grad=st.booleans(), data=st.data())
    def test_any_length_and_mask(
        self, mechanism: str, length: int, rank: int, grad: bool, data: st.DataObject
    ) -> None:
        layer = random_layer(rank=rank, **MECHANISMS[mechanism])
        hidden, state = inputs(2, length, rank)
        on = data.draw(st.lists(st.booleans(), min_size=2 * length, max_size=2 * length))
        write = torch.tensor(on, dtype=torch.bool).reshape(2, length)
        with torch.set_grad_enabled(grad):
            assert_close(layer(hidden, state, write=write), truth(layer, hidden, state, write=write))

    @pytest.mark.parametrize("grad", [True, False])
    @mechanism
    def test_only_reading(self, mechanism: str, grad: bool) -> None:
        layer = random_layer(**MECHANISMS[mechanism])
        hidden, state = inputs()
        with torch.set_grad_enabled(grad):
            found = layer(hidden, state, write=False)
        nothing = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        assert torch.equal(found.state, state)
        assert_close(found, truth(layer, hidden, state, write=nothing))

    def test_the_given_state_is_left_alone(self) -> None:
        layer = random_layer()
        hidden, state = inputs()
        before = state.clone()
        for arguments in ({}, {"write": False}, {"spans": torch.zeros(2, 7, dtype=torch.long)}):
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    layer(hidden, state, **arguments)
                assert torch.equal(state, before)

    @pytest.mark.parametrize("read_gate", ["off", "token"])
    def test_state_heads_do_not_mix(self, read_gate: str) -> None:
        layer = random_layer(read_gate=read_gate)
        hidden, state = inputs()
        other = state.clone()
        other[:, 1] += 1
        one, two = layer(hidden, state), layer(hidden, other)
        assert torch.equal(one.reads[..., :3], two.reads[..., :3])
        assert torch.equal(one.state[:, 0], two.state[:, 0])
        assert not torch.allclose(one.reads[..., 3:], two.reads[..., 3:])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("of", ["hidden", "layer", "both"])
    @mechanism
    def test_other_dtypes_give_float32(self, mechanism: str, dtype: torch.dtype, of: str) -> None:
        layer, (hidden, state) = random_layer(**MECHANISMS[mechanism]), inputs()
        expected = layer(hidden, state)
        layer, hidden = layer.to(dtype) if of != "hidden" else layer, hidden.to(dtype) if of != "layer" else hidden
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                found = layer(hidden, state)
            tensors = [(f, e) for f, e in zip(found, expected, strict=True) if f is not None]
            assert {f.dtype for f, _ in tensors} == {torch.float32}
            assert all(torch.allclose(f, e, atol=0.05) for f, e in tensors)

    @pytest.mark.parametrize("options", [MECHANISMS["published"], MECHANISMS["gated"] | {"gate_floor": 0.0}])
    def test_gradients_are_those_of_finite_differences(self, options: dict[str, object]) -> None:
        """Without floors: their gradients are straight through, and no differences show them."""
        layer = random_layer(**options).double()
        hidden, state = inputs(1, 5)
        found = layer(hidden, state)
        loss = found.reads.square().sum() + found.state.square().sum()
        loss.backward()
        generator = torch.Generator().manual_seed(0)
        for name, parameter in layer.named_parameters():
            if name.startswith("delta"):
                continue
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            ends = []
            for step in (1e-4, -1e-4):
                with torch.no_grad():
                    parameter.add_(direction, alpha=step)
                    exact = truth(layer, hidden, state)
                    ends.append(exact.reads.square().sum() + exact.state.square().sum())
                    parameter.add_(direction, alpha=-step)
            assert torch.isclose((ends[0] - ends[1]) / 2e-4, (parameter.grad * direction).sum(), rtol=1e-3)


class TestSpans:
    @mechanism
    def test_one_write_from_the_mean_of_each_span(self, mechanism: str) -> None:
        layer = random_layer(write_granularity="message_mean", **MECHANISMS[mechanism])
        hidden, state = inputs()
        spans = torch.tensor([[0, 0, 0, 1, 1, -1, 2], [-1, 5, 5, 5, 3, 3, -1]])
        found = layer(hidden, state, spans=spans)
        assert_close(found, truth(layer, hidden, state, spans=spans))
        assert torch.allclose(found.reads, layer(hidden, state, write=False).reads, atol=1e-6)

    @mechanism
    def test_means_by_hand(self, mechanism: str) -> None:
        """A span is the token write of its mean; its key's part of the token before is the mean of its tokens' ones."""
        layer = random_layer(write_granularity="message_mean", **MECHANISMS[mechanism])
        hidden, state = inputs(1, 5)
        found = layer(hidden, state[:1], spans=torch.tensor([[-1, 0, 0, 1, 1]]))
        after = state[:1]
        for own, before in (([1, 2], [0, 1]), ([3, 4], [2, 3])):
            carry = None
            if layer.config.key_shift:
                carry = hidden[:, before].mean(1) @ weights_of(layer)["memory_k_shift_proj"].float().T
            after = layer(hidden[:, own].mean(1, keepdim=True), after, carry=carry).state
        assert torch.allclose(found.state, after, atol=1e-6)

    @mechanism
    @settings(max_examples=20)
    @given(data=st.data(), grad=st.booleans())
    def test_any_spans_and_masks(self, mechanism: str, data: st.DataObject, grad: bool) -> None:
        layer = random_layer(write_granularity="sentence_mean", **MECHANISMS[mechanism])
        hidden, state = inputs(2, 6)
        ids = data.draw(st.lists(st.integers(-1, 3), min_size=12, max_size=12))
        write = torch.tensor(data.draw(st.lists(st.booleans(), min_size=12, max_size=12))).reshape(2, 6)
        spans = torch.tensor(ids).reshape(2, 6)
        with torch.set_grad_enabled(grad):
            found = layer(hidden, state, write=write, spans=spans)
        assert_close(found, truth(layer, hidden, state, write=write, spans=spans))

    def test_a_span_of_one_token_is_a_token_write(self) -> None:
        layer, (hidden, state) = random_layer(), inputs()
        spans = torch.arange(7).expand(2, 7)
        assert torch.allclose(layer(hidden, state, spans=spans).state, layer(hidden, state).state, atol=1e-6)

    def test_not_written(self) -> None:
        layer, (hidden, state) = random_layer(), inputs()
        spans = torch.zeros(2, 7, dtype=torch.long)
        for arguments in ({"write": False, "spans": spans}, {"spans": spans - 1}):
            assert torch.equal(layer(hidden, state, **arguments).state, state)

    def test_bfloat16_means_are_taken_in_float32(self) -> None:
        layer = random_layer(write_granularity="message_mean")
        hidden, state = inputs(1, 300)
        hidden = (hidden + 100).bfloat16()
        spans = torch.zeros(1, 300, dtype=torch.long)
        half, whole = (layer(x, state[:1], spans=spans) for x in (hidden, hidden.float()))
        assert torch.equal(half.state, whole.state)


class TestCorrections:
    @pytest.mark.parametrize("scale", ["off", "layer", "projection"])
    @pytest.mark.parametrize("rmsnorm", [True, False])
    def test_equation(self, scale: str, rmsnorm: bool) -> None:
        layer = random_layer(
            delta_heads=("q", "k", "v", "o"), alpha=6.0, trainable_delta_scale=scale, delta_o_rmsnorm=rmsnorm
        )
        reads = torch.randn(2, 5, 6)
        for index, projection in enumerate(("q", "k", "v", "o")):
            expected = reads @ layer.delta[projection].T * (6.0 / 3)
            if scale != "off":
                expected = expected * torch.sigmoid(layer.delta_scale_raw[index if scale == "projection" else 0]) * 2.0
            if rmsnorm and projection == "o":
                expected = expected / (expected.square().mean(-1, keepdim=True) + 1e-6).sqrt()
                expected = expected * layer.delta_o_rmsnorm_weight
            assert torch.allclose(layer.correction(projection, reads), expected, atol=1e-5)

    def test_nothing_read_corrects_nothing(self) -> None:
        layer = random_layer(delta_o_rmsnorm=True, trainable_delta_scale="layer")
        assert not layer.correction("o", torch.zeros(1, 2, 6)).any()

    @pytest.mark.parametrize("grad", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("strided", [True, False])
    @torch.no_grad()
    def test_added_to_an_output(self, grad: bool, dtype: torch.dtype, strided: bool) -> None:
        """Reads come strided from some scans, outputs from some projections."""
        layer = random_layer()
        reads, out = torch.randn(2, 5, 6), torch.randn(2, 5, SHAPE.o).to(dtype)
        if strided:
            reads, out = reads.mT.contiguous().mT, out.mT.contiguous().mT
        expected = out + layer.correction("o", reads).to(dtype)
        with torch.set_grad_enabled(grad):
            found = layer.correct("o", out.clone(), reads)
        assert found.dtype == dtype
        assert torch.allclose(found, expected, atol=1e-5)


class TestInitialisation:
    def test_gates_start_at_their_biases_and_corrections_small(self) -> None:
        config = DeltaMemConfig(
            beta_bias_init=-3.0, lambda_bias_init=6.0, read_gate_bias_init=0.5, delta_init_std=0.01, read_gate="match"
        )
        layer = DeltaMemLayer(config, SHAPE)
        layer.reset_parameters(torch.Generator().manual_seed(0))
        weights, width = weights_of(layer), config.width
        beta, read = (floor(torch.sigmoid(weights[f"{n}_bias"]), config.gate_floor) for n in ("beta", "read_gate"))
        assert torch.allclose(beta, torch.sigmoid(torch.tensor(-3.0)).double())
        assert torch.allclose(read, torch.sigmoid(torch.tensor(0.5)).double())
        assert weights["lambda_bias"].tolist() == [6.0] * width
        for name in ("beta_proj", "lambda_proj", "read_gate_proj", "read_gate_match"):
            assert not weights[name].any()
        for name in ("memory_q_proj", "memory_k_proj", "memory_k_shift_proj", "memory_v_proj"):
            assert 0.9 * SHAPE.hidden**-0.5 < weights[name].abs().max() <= SHAPE.hidden**-0.5
        assert 0.005 < layer.delta["o"].std() < 0.02
        plain = DeltaMemLayer(config.model_copy(update={"gate_floor": 0.0}), SHAPE)
        plain.reset_parameters()
        assert plain.gate_bias.tolist() == [-3.0] * width + [6.0] * width

    def test_a_seed_decides(self) -> None:
        one, two = (DeltaMemLayer(DeltaMemConfig(), SHAPE) for _ in range(2))
        for layer in (one, two):
            layer.reset_parameters(torch.Generator().manual_seed(3))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
