"""Every path of a layer's memory against its equations: options, masks, padding, splits, gradients, closed gates."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import assume, currently_in_test_context, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltamem_agents.layer import DeltaMemLayer, LayerOutput
from tests.test_layer import SHAPE, random_layer
from tests.truth import Truth, by_the_book, weights_of

Run = Callable[..., LayerOutput]
PATHS = ("fused", "composed", "differentiable", "compiled")
path = pytest.mark.parametrize("path", PATHS)
options_of = st.fixed_dictionaries(
    {
        "key_shift": st.booleans(),
        "read_gate": st.sampled_from(["off", "token", "match"]),
        "gate_floor": st.sampled_from([0.0, 0.3, 0.5]),
        "state_update_mode": st.sampled_from(["standard", "lambda_outside", "no_lambda"]),
        "couple_lambda": st.booleans(),
        "rankwise_gates": st.booleans(),
    }
)
ALL = {"key_shift": True, "read_gate": "match", "gate_floor": 0.3}


@contextmanager
def running(path: str, layer: DeltaMemLayer) -> Iterator[Run]:
    """The layer by one of its paths: one native call; native scan between torch; with gradients; torch.compile."""
    if path == "compiled":
        torch._dynamo.reset()
        with torch.no_grad():
            yield torch.compile(layer, fullgraph=True, backend="eager", dynamic=False)
    elif path == "composed":
        with torch.no_grad():
            yield lambda *args, **kwargs: layer(*args, **kwargs, gates=True)
    else:
        with torch.set_grad_enabled(path == "differentiable"):
            yield layer


class Drawn:
    """Tokens of two rows, some of them padding, some not written, and what stands before them."""

    def __init__(self, data: st.DataObject, length: int, options: dict[str, object]) -> None:
        self.layer = random_layer(data.draw(st.integers(0, 99)), **options)
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
        flags = st.lists(st.booleans(), min_size=2 * length, max_size=2 * length)
        self.hidden = torch.randn(2, length, SHAPE.hidden, generator=generator)
        self.state = torch.randn(2, 2, 3, 3, generator=generator) * data.draw(st.sampled_from([0.0, 1.0]))
        valid, self.write = (torch.tensor(data.draw(flags), dtype=torch.bool).view(2, length) for _ in range(2))
        self.valid = valid if data.draw(st.booleans()) else None
        self.write = self.write if self.valid is None else self.write & valid
        carry = torch.randn(2, 6, generator=generator) if data.draw(st.booleans()) else None
        self.carry = carry if self.layer.config.key_shift else None

    def arguments(self, at: slice = slice(None)) -> dict[str, Tensor | None]:
        return {"write": self.write[:, at], "valid": None if self.valid is None else self.valid[:, at]}

    def truth(self) -> Truth:
        layer = self.layer
        found = by_the_book(
            weights_of(layer), layer.config, self.hidden, self.state, carry=self.carry, **self.arguments()
        )
        assume(found.margin > 1e-5)
        return found


def assert_true(found: LayerOutput, truth: Truth, tolerance: float = 2e-5) -> None:
    pairs = [(found.reads, truth.reads), (found.state, truth.state)]
    assert (found.carry is None) == (truth.carry is None)
    pairs += [] if truth.carry is None else [(found.carry, truth.carry)]
    pairs += [] if found.gate is None else [(found.gate, truth.gates)]
    for one, other in pairs:
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.detach().double(), other, rtol=tolerance, atol=tolerance)


class TestEquations:
    @pytest.mark.parametrize("path", PATHS[:3])
    @given(data=st.data(), length=st.integers(0, 40), options=options_of)
    def test_any_options_masks_and_padding(
        self, path: str, data: st.DataObject, length: int, options: dict[str, object]
    ) -> None:
        drawn = Drawn(data, length, options)
        truth = drawn.truth()
        with running(path, drawn.layer) as run:
            assert_true(run(drawn.hidden, drawn.state, carry=drawn.carry, **drawn.arguments()), truth)

    @settings(max_examples=6)
    @given(data=st.data(), length=st.sampled_from([1, 5, 40]), options=options_of)
    def test_compiled(self, data: st.DataObject, length: int, options: dict[str, object]) -> None:
        """In chunks, or for one token in one step."""
        self.test_any_options_masks_and_padding.hypothesis.inner_test(self, "compiled", data, length, options)

    @pytest.mark.parametrize("path", PATHS[:3])
    @given(data=st.data(), length=st.integers(2, 30), options=options_of)
    def test_split_anywhere_is_the_whole(
        self, path: str, data: st.DataObject, length: int, options: dict[str, object]
    ) -> None:
        drawn = Drawn(data, length, options)
        truth = drawn.truth()
        cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=length - 1)))
        state, carry, parts = drawn.state, drawn.carry, []
        with running(path, drawn.layer) as run:
            for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
                at = slice(start, stop)
                out = run(drawn.hidden[:, at], state, carry=carry, **drawn.arguments(at))
                state, carry = out.state, out.carry
                parts.append(out)
        gate = None if out.gate is None else torch.cat([part.gate for part in parts], 1)
        assert_true(LayerOutput(torch.cat([part.reads for part in parts], 1), state, carry, gate), truth)

    @pytest.mark.parametrize("path", PATHS[:3])
    @given(data=st.data(), options=options_of)
    def test_only_reading_moves_the_carry_and_nothing_else(
        self, path: str, data: st.DataObject, options: dict[str, object]
    ) -> None:
        drawn = Drawn(data, 6, options)
        drawn.write = torch.zeros_like(drawn.write)
        truth = drawn.truth()
        with running(path, drawn.layer) as run:
            found = run(drawn.hidden, drawn.state, carry=drawn.carry, **drawn.arguments() | {"write": False})
        assert torch.equal(found.state, drawn.state)
        assert_true(found, truth)


class TestGradients:
    """Of the differentiable path: autograd's own through the equations, floors straight through."""

    @settings(max_examples=12)
    @given(data=st.data(), length=st.integers(1, 7), options=options_of, spans=st.booleans())
    def test_gradients_are_those_of_the_equations(
        self, data: st.DataObject, length: int, options: dict[str, object], spans: bool
    ) -> None:
        drawn = Drawn(data, length, options)
        ids = torch.tensor(data.draw(st.lists(st.integers(-1, 2), min_size=2 * length, max_size=2 * length)))
        self.check(drawn, drawn.layer, ids.view(2, length) if spans else None)

    def test_compiled(self) -> None:
        torch._dynamo.reset()
        drawn = Drawn.__new__(Drawn)
        drawn.layer, drawn.valid = random_layer(3, **ALL), torch.tensor([[False, True, True, True, True]] * 2)
        drawn.hidden, drawn.state = torch.randn(2, 5, SHAPE.hidden), torch.randn(2, 2, 3, 3)
        drawn.write, drawn.carry = drawn.valid, torch.randn(2, 6)
        self.check(drawn, torch.compile(drawn.layer, fullgraph=True, backend="aot_eager"), None)

    def check(self, drawn: Drawn, run: Run, spans: Tensor | None) -> None:
        layer, generator = drawn.layer, torch.Generator().manual_seed(5)
        inputs = [x.requires_grad_() for x in (drawn.hidden, drawn.state, drawn.carry) if x is not None]
        weights = {name: t.requires_grad_() for name, t in weights_of(layer).items() if not name.startswith("delta")}
        arguments = drawn.arguments() | {"spans": spans, "carry": drawn.carry}
        truth = by_the_book(weights, layer.config, drawn.hidden, drawn.state, **arguments)
        assume(truth.margin > 1e-5 or not currently_in_test_context())
        found = run(drawn.hidden, drawn.state, **arguments)
        directions = [torch.randn(x.shape, generator=generator) for x in (truth.reads, truth.state)]
        loss = (found.reads * directions[0]).sum() + (found.state * directions[1]).sum()
        exact = (truth.reads * directions[0]).sum() + (truth.state * directions[1]).sum()
        if truth.carry is not None:
            loss, exact = loss + found.carry.square().sum(), exact + truth.carry.square().sum()
        parameters = [p for name, p in layer.named_parameters() if not name.startswith("delta")]
        own = torch.autograd.grad(loss, [*parameters, *inputs], allow_unused=True, materialize_grads=True)
        expected = torch.autograd.grad(exact, [*weights.values(), *inputs], allow_unused=True, materialize_grads=True)
        for one, other in zip(own[len(parameters) :], expected[len(weights) :], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        named = copy.deepcopy(layer)  # the gradients by their names on disk
        with torch.no_grad():
            kept = [p for name, p in named.named_parameters() if not name.startswith("delta")]
            for parameter, gradient in zip(kept, own, strict=False):
                parameter.copy_(gradient)
        for (name, one), other in zip(weights.items(), expected, strict=False):
            torch.testing.assert_close(weights_of(named)[name], other, rtol=1e-3, atol=1e-4, msg=f"{name} {one.shape}")

    def test_a_closed_gate_can_open_again(self) -> None:
        layer = random_layer(gate_floor=0.3, read_gate="token", couple_lambda=False)
        with torch.no_grad():
            layer.in_proj[layer.block["beta"]] = 0.0
            layer.gate_bias[:6] = -1.5  # σ is 0.18, under the floor
        hidden, state = torch.randn(1, 6, SHAPE.hidden), torch.randn(1, 2, 3, 3)
        found = layer(hidden, state)
        assert torch.equal(found.state, state)
        found.state.sum().backward()
        assert layer.gate_bias.grad[:6].all()


class TestClosedGates:
    """What is closed is exactly so, in every path."""

    @path
    @pytest.mark.parametrize("coupled", [True, False])
    @pytest.mark.parametrize("length", [1, 40])
    def test_closed_write_gates_leave_the_state_alone_bit_for_bit(self, path: str, coupled: bool, length: int) -> None:
        layer = random_layer(**ALL, couple_lambda=coupled)
        with torch.no_grad():
            layer.gate_bias[: layer.config.gates] = -30.0
        hidden, state = torch.randn(2, length, SHAPE.hidden), torch.randn(2, 2, 3, 3)
        with running(path, layer) as run:
            assert torch.equal(run(hidden, state).state, state)

    @path
    def test_rows_of_the_state_whose_gate_is_closed_stay_bit_for_bit(self, path: str) -> None:
        layer = random_layer(1, **ALL)
        hidden, state, carry = torch.randn(2, 12, SHAPE.hidden), torch.randn(2, 2, 3, 3), None
        closed = by_the_book(weights_of(layer), layer.config, hidden, state).betas == 0  # [B, T, N, r]
        assert 0.1 < closed.float().mean() < 0.9
        with running(path, layer) as run:
            for t in range(12):
                out = run(hidden[:, t : t + 1], state, carry=carry)
                assert torch.equal(out.state[closed[:, t]], state[closed[:, t]])
                assert not torch.equal(out.state, state)
                state, carry = out.state, out.carry

    @path
    def test_closed_read_gates_read_nothing(self, path: str) -> None:
        layer = random_layer(2, **ALL)
        hidden, state = torch.randn(2, 40, SHAPE.hidden), torch.randn(2, 2, 3, 3)
        closed = by_the_book(weights_of(layer), layer.config, hidden, state).gates == 0  # [B, T, N]
        assert 0.1 < closed.float().mean() < 0.9
        with running(path, layer) as run:
            reads = run(hidden, state).reads.view(2, 40, 2, 3)
        assert not reads[closed].any()
        assert reads[~closed].any(-1).all()

    @path
    @pytest.mark.parametrize("read_gate", ["off", "token", "match"])
    def test_an_empty_state_reads_exactly_nothing(self, path: str, read_gate: str) -> None:
        layer = random_layer(**ALL | {"read_gate": read_gate})
        with running(path, layer) as run:
            found = run(torch.randn(2, 9, SHAPE.hidden), torch.zeros(2, 2, 3, 3), write=False)
        assert not found.reads.any()
        assert not found.state.any()

    @path
    def test_read_gates_never_change_a_write(self, path: str) -> None:
        hidden, state = torch.randn(2, 40, SHAPE.hidden), torch.randn(2, 2, 3, 3)
        layer, found = random_layer(**ALL), []
        for bias in (-30.0, 0.0, 30.0):
            with torch.no_grad():
                layer.read_gate_bias.fill_(bias)
            with running(path, layer) as run:
                found.append(run(hidden, state))
        assert torch.equal(found[0].state, found[1].state)
        assert torch.equal(found[0].state, found[2].state)
        assert not torch.equal(found[1].reads, found[2].reads)


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_carry_comes_back_as_it_was_left(self, dtype: torch.dtype) -> None:
        """So that a split equals the whole in low precision too."""
        layer = random_layer(**ALL | {"gate_floor": 0.0}).to(dtype)
        hidden, state = torch.randn(1, 9, SHAPE.hidden).to(dtype), torch.randn(1, 2, 3, 3)
        with torch.no_grad():
            whole, first = layer(hidden, state), layer(hidden[:, :4], state)
            rest = layer(hidden[:, 4:], first.state, carry=first.carry)
        assert rest.carry.dtype == torch.float32
        torch.testing.assert_close(rest.carry, whole.carry)
        torch.testing.assert_close(rest.state, whole.state, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(rest.reads, whole.reads[:, 4:], rtol=1e-2, atol=1e-2)

    def test_gradients_of_the_carry_alone_are_kept(self) -> None:
        """A frozen layer whose carry comes from a graph must not take the path that has no gradients."""
        layer = random_layer(**ALL).requires_grad_(False)
        carry = torch.randn(1, 6, requires_grad=True)
        layer(torch.randn(1, 3, SHAPE.hidden), torch.randn(1, 2, 3, 3), carry=carry).state.sum().backward()
        assert carry.grad.any()
