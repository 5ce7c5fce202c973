"""A layer against the paper's equations written out token by token, and spans against means by hand."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltamem_agents.config import DeltaMemConfig, StateUpdateMode
from deltamem_agents.layer import DeltaMemLayer, LayerShape

SHAPE = LayerShape(hidden=12, q=16, k=8, v=8, o=12)
MODES: tuple[StateUpdateMode, ...] = ("standard", "lambda_outside", "no_lambda")
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


def by_the_book(
    layer: DeltaMemLayer, hidden: Tensor, state: Tensor, write: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """ρ = S q, then S ← diag(keep) S − diag(erase)(S k)kᵀ + diag(write) v kᵀ, in float64, token by token."""
    config = layer.config
    r, n, gates = config.rank, config.num_state_heads, config.gates
    weights, bias = layer.in_proj.detach().double(), layer.gate_bias.detach().double()
    w_q, w_k, w_v = (weights[i * n * r : (i + 1) * n * r] for i in range(3))
    w_beta, w_lambda = weights[3 * n * r :][:gates], weights[3 * n * r :][gates:]

    def unit(x: Tensor) -> Tensor:
        x = x.tanh() if config.normalize_qk else x
        return x / x.norm().clamp_min(1e-6) if config.normalize_qk else x

    def gate(weight: Tensor, bias: Tensor, x: Tensor, head: int) -> Tensor:
        all_gates = torch.sigmoid(weight @ x + bias)
        return all_gates[head * r : (head + 1) * r] if config.rankwise_gates else all_gates[head].expand(r)

    reads = torch.zeros(*hidden.shape[:2], n * r, dtype=torch.float64)
    state = state.double().clone()
    for b, h, t in itertools.product(range(len(hidden)), range(n), range(hidden.shape[1])):
        x, s, rows = hidden[b, t].double(), state[b, h].clone(), slice(h * r, (h + 1) * r)
        q, k, v = unit((w_q @ x)[rows]), unit((w_k @ x)[rows]), (w_v @ x)[rows]
        reads[b, t, rows] = s @ q
        if write is not None and not write[b, t]:
            continue
        beta = gate(w_beta, bias[:gates], x, h)
        lam = 1 - beta if config.couple_lambda else gate(w_lambda, bias[gates:], x, h)
        keep = torch.ones_like(lam) if config.state_update_mode == "no_lambda" else lam
        erase = lam * beta if config.state_update_mode == "lambda_outside" else beta
        state[b, h] = keep.diag() @ s - erase.diag() @ torch.outer(s @ k, k) + beta.diag() @ torch.outer(v, k)
    return reads, state


def assert_close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one, other.float(), atol=1e-5, rtol=1e-5)


class TestTokenWrites:
    @pytest.mark.parametrize(("mode", "coupled", "rankwise", "normalised"), MODES_AND_GATES)
    @pytest.mark.parametrize("grad", [True, False])
    def test_equations(self, mode: str, coupled: bool, rankwise: bool, normalised: bool, grad: bool) -> None:
        layer = random_layer(
            state_update_mode=mode, couple_lambda=coupled, rankwise_gates=rankwise, normalize_qk=normalised
        )
        hidden, state = inputs()
        hidden = hidden if normalised else hidden / 3  # a rule without unit keys diverges
        with torch.set_grad_enabled(grad):
            assert_close(layer(hidden, state), by_the_book(layer, hidden, state))

    @settings(max_examples=15)
    @given(length=st.integers(0, 70), rank=st.integers(1, 6), grad=st.booleans(), data=st.data())
    def test_any_length_and_mask(self, length: int, rank: int, grad: bool, data: st.DataObject) -> None:
        layer = random_layer(rank=rank)
        hidden, state = inputs(2, length, rank)
        on = data.draw(st.lists(st.booleans(), min_size=2 * length, max_size=2 * length))
        write = torch.tensor(on, dtype=torch.bool).reshape(2, length)
        with torch.set_grad_enabled(grad):
            assert_close(layer(hidden, state, write=write), by_the_book(layer, hidden, state, write))

    @pytest.mark.parametrize("grad", [True, False])
    def test_only_reading(self, grad: bool) -> None:
        layer = random_layer()
        hidden, state = inputs()
        with torch.set_grad_enabled(grad):
            reads, after = layer(hidden, state, write=False)
        nothing = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        assert torch.equal(after, state)
        assert torch.allclose(reads.double(), by_the_book(layer, hidden, state, nothing)[0], atol=1e-5)

    def test_the_given_state_is_left_alone(self) -> None:
        layer = random_layer()
        hidden, state = inputs()
        before = state.clone()
        for arguments in ({}, {"write": False}, {"spans": torch.zeros(2, 7, dtype=torch.long)}):
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    layer(hidden, state, **arguments)
                assert torch.equal(state, before)

    def test_state_heads_do_not_mix(self) -> None:
        layer = random_layer()
        hidden, state = inputs()
        other = state.clone()
        other[:, 1] += 1
        reads, after = layer(hidden, state)
        other_reads, other_after = layer(hidden, other)
        assert torch.equal(reads[..., :3], other_reads[..., :3])
        assert torch.equal(after[:, 0], other_after[:, 0])
        assert not torch.allclose(reads[..., 3:], other_reads[..., 3:])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("of", ["hidden", "layer", "both"])
    def test_other_dtypes_give_float32(self, dtype: torch.dtype, of: str) -> None:
        layer, (hidden, state) = random_layer(), inputs()
        expected = layer(hidden, state)
        layer, hidden = layer.to(dtype) if of != "hidden" else layer, hidden.to(dtype) if of != "layer" else hidden
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                found = layer(hidden, state)
            assert {x.dtype for x in found} == {torch.float32}
            assert all(torch.allclose(f, e, atol=0.05) for f, e in zip(found, expected, strict=True))

    def test_gradients_are_those_of_finite_differences(self) -> None:
        layer = random_layer().double()
        hidden, state = inputs(1, 5)
        loss = sum(x.square().sum() for x in layer(hidden, state))
        loss.backward()
        generator = torch.Generator().manual_seed(0)
        for parameter in (layer.in_proj, layer.gate_bias):
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            ends = []
            for step in (1e-4, -1e-4):
                with torch.no_grad():
                    parameter.add_(direction, alpha=step)
                    ends.append(sum(x.square().sum() for x in by_the_book(layer, hidden, state)))
                    parameter.add_(direction, alpha=-step)
            assert torch.isclose((ends[0] - ends[1]) / 2e-4, (parameter.grad * direction).sum(), rtol=1e-3)


class TestSpans:
    def test_one_write_from_the_mean_of_each_span(self) -> None:
        layer = random_layer(write_granularity="message_mean")
        hidden, state = inputs()
        spans = torch.tensor([[0, 0, 0, 1, 1, -1, 2], [-1, 5, 5, 5, 3, 3, -1]])
        reads, after = layer(hidden, state, spans=spans)
        first = torch.stack([hidden[0, :3].mean(0), hidden[0, 3:5].mean(0), hidden[0, 6]])[None]
        second = torch.stack([hidden[1, 4:6].mean(0), hidden[1, 1:4].mean(0)])[None]  # in order of the ids
        expected = [by_the_book(layer, means, state[b : b + 1])[1] for b, means in enumerate((first, second))]
        assert torch.allclose(after, torch.cat(expected).float(), atol=1e-5)
        assert torch.allclose(reads, layer(hidden, state, write=False)[0], atol=1e-6)

    @settings(max_examples=20)
    @given(data=st.data(), grad=st.booleans())
    def test_any_spans_and_masks(self, data: st.DataObject, grad: bool) -> None:
        layer = random_layer(write_granularity="sentence_mean")
        hidden, state = inputs(2, 6)
        ids = data.draw(st.lists(st.integers(-1, 3), min_size=12, max_size=12))
        write = torch.tensor(data.draw(st.lists(st.booleans(), min_size=12, max_size=12))).reshape(2, 6)
        spans = torch.tensor(ids).reshape(2, 6)
        with torch.set_grad_enabled(grad):
            after = layer(hidden, state, write=write, spans=spans)[1]
        for b in range(2):
            groups = [hidden[b][(spans[b] == i) & write[b]] for i in range(4)]
            means = [g.mean(0) for g in groups if len(g)]
            expected = by_the_book(layer, torch.stack(means)[None], state[b : b + 1])[1] if means else state[b : b + 1]
            assert torch.allclose(after[b : b + 1], expected.float(), atol=1e-5)

    def test_a_span_of_one_token_is_a_token_write(self) -> None:
        layer, (hidden, state) = random_layer(), inputs()
        spans = torch.arange(7).expand(2, 7)
        assert torch.allclose(layer(hidden, state, spans=spans)[1], layer(hidden, state)[1], atol=1e-6)

    def test_not_written(self) -> None:
        layer, (hidden, state) = random_layer(), inputs()
        spans = torch.zeros(2, 7, dtype=torch.long)
        for arguments in ({"write": False, "spans": spans}, {"spans": spans - 1}):
            assert torch.equal(layer(hidden, state, **arguments)[1], state)

    def test_bfloat16_means_are_taken_in_float32(self) -> None:
        layer = random_layer(write_granularity="message_mean")
        hidden, state = inputs(1, 300)
        hidden = (hidden + 100).bfloat16()
        spans = torch.zeros(1, 300, dtype=torch.long)
        assert torch.equal(layer(hidden, state[:1], spans=spans)[1], layer(hidden.float(), state[:1], spans=spans)[1])


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
        layer = DeltaMemLayer(DeltaMemConfig(beta_bias_init=-3.0, lambda_bias_init=6.0, delta_init_std=0.01), SHAPE)
        layer.reset_parameters(torch.Generator().manual_seed(0))
        width = layer.config.width
        assert layer.gate_bias.tolist() == [-3.0] * width + [6.0] * width
        assert not layer.in_proj[3 * width :].any()
        assert 0 < layer.in_proj[: 3 * width].abs().max() <= SHAPE.hidden**-0.5
        assert 0.005 < layer.delta["q"].std() < 0.02

    def test_a_seed_decides(self) -> None:
        one, two = (DeltaMemLayer(DeltaMemConfig(), SHAPE) for _ in range(2))
        for layer in (one, two):
            layer.reset_parameters(torch.Generator().manual_seed(3))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
