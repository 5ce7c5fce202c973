"""A memory in other types of weights, in several threads, and compiled."""

import threading

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deltamem_agents.adapter import DeltaMemModel, DeltaMemOutput, backbone_fingerprint
from deltamem_agents.state import MemoryState
from tests.adapter.running import LENGTH, close, mechanism, start
from tests.builders import MECHANISMS, adapted, randomised, tiny, tokens, warm


class TestPrecision:
    @mechanism
    @torch.no_grad()
    def test_bfloat16_backbone_float32_memory(self, mechanism: str) -> None:
        """Without floors: where rounding carries a gate over one, λ jumps."""
        ids, options = tokens(2, LENGTH), MECHANISMS[mechanism] | {"gate_floor": 0.0}
        for model in (adapted(backbone=tiny().bfloat16(), **options), adapted(**options).bfloat16()):
            whole, first = model(ids), model(ids[:, :5])
            rest = model(ids[:, 5:], **warm(first))
            assert whole.logits.dtype == torch.bfloat16
            assert rest.state.tensor.dtype == whole.state.tensor.dtype == torch.float32
            assert torch.allclose(rest.state.tensor, whole.state.tensor, atol=0.1)
            assert rest.carry is None or rest.carry.dtype == whole.carry.dtype == torch.float32
        reference = adapted(**options)(ids).state.tensor
        error = adapted(backbone=tiny().bfloat16(), **options)(ids).state.tensor - reference
        assert error.abs().max() < 0.1 * reference.abs().max()

    @torch.no_grad()
    @pytest.mark.parametrize("granularity", ["token", "message_mean"])
    @mechanism
    def test_autocast_leaves_the_memory_alone(self, mechanism: str, granularity: str) -> None:
        model = adapted(write_granularity=granularity, **MECHANISMS[mechanism])
        layer = next(iter(model.adapter.layers.values()))
        hidden, state = torch.randn(1, LENGTH, 32), torch.randn(1, 2, 4, 4)
        spans = None if granularity == "token" else torch.zeros(1, LENGTH, dtype=torch.long)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                expected = layer(hidden, state, spans=spans)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    found = layer(hidden, state, spans=spans)
            assert all(f is e is None or torch.equal(f, e) for f, e in zip(found, expected, strict=True))

    @torch.no_grad()
    def test_other_default_dtype(self) -> None:
        torch.set_default_dtype(torch.bfloat16)
        try:
            assert MemoryState.zeros(1, 1, 1, 2).tensor.dtype == torch.float32
        finally:
            torch.set_default_dtype(torch.float32)

    @torch.no_grad()
    def test_quantised_backbone(self) -> None:
        """int8 weights in modules that are no nn.Linear and have no parameters: only their outputs are corrected."""
        ids = tokens(2, LENGTH)
        adapter = adapted().adapter
        backbone = quantised(tiny())
        plain = backbone(ids).logits
        model = DeltaMemModel(backbone, adapter)
        whole, first = model(ids), model(ids[:, :5])
        assert torch.equal(model(ids, write=False).logits, plain)
        assert (model(ids, state=start(model, 2), write=False).logits - plain).abs().max() > 0.02
        error = (whole.state.tensor - adapted()(ids).state.tensor).abs().max()
        assert 0 < error < 0.1 * whole.state.tensor.abs().max()
        rest = model(ids[:, 5:], **warm(first))
        assert close(rest.logits, whole.logits[:, 5:])
        assert backbone_fingerprint(backbone) == backbone_fingerprint(tiny())


class Int8Linear(nn.Module):
    """Weights as int8 with a scale per row, as quantisers keep them: buffers, and sizes by nn.Linear's names."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def quantised(backbone: PreTrainedModel) -> PreTrainedModel:
    for layer in backbone.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Int8Linear(child))
    return backbone


class TestThreads:
    @torch.no_grad()
    def test_forwards_on_one_model_do_not_mix(self) -> None:
        model, threads, rounds = adapted(), 3, 30
        states = [start(model).rows(0), model.zero_state(), model(tokens(1, 5, seed=9)).state]
        inputs = [tokens(1, 6 + n, seed=n) for n in range(threads)]
        expected = [model(i, state=s, write=n != 1) for n, (i, s) in enumerate(zip(inputs, states, strict=True))]
        barrier, wrong = threading.Barrier(threads), []

        def work(n: int) -> None:
            with torch.no_grad():
                for _ in range(rounds):
                    barrier.wait(30)
                    out = model(inputs[n], state=states[n], write=n != 1)
                    if not (torch.equal(out.logits, expected[n].logits) and same_state(out, expected[n])):
                        wrong.append(n)

        workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert not any(worker.is_alive() for worker in workers)
        assert not wrong

    @torch.no_grad()
    def test_forwards_interleaved_inside_attention_do_not_mix(self) -> None:
        """Both threads are held between q_proj and o_proj of every layer, where a shared slot would be overwritten."""
        model, ids = adapted(), [tokens(1, 6, seed=n) for n in range(2)]
        states = [start(model), model.zero_state()]
        expected = [model(i, state=s) for i, s in zip(ids, states, strict=True)]
        barrier, found = threading.Barrier(2), {}
        for layer in model.backbone.model.layers:
            layer.self_attn.v_proj.register_forward_hook(lambda *_: (barrier.wait(30), None)[1])

        def work(n: int) -> None:
            with torch.no_grad():
                found[n] = model(ids[n], state=states[n])

        workers = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert all(torch.equal(found[n].logits, e.logits) and same_state(found[n], e) for n, e in enumerate(expected))

    @torch.no_grad()
    def test_an_exception_leaves_no_trace(self) -> None:
        model, ids = adapted(), tokens(1, 6)
        plain = model.backbone(ids).logits
        state = start(model)
        expected = model(ids, state=state)
        attention = model.backbone.model.layers[1].self_attn
        for module in (attention.k_proj, attention.o_proj, model.backbone.model.layers[0].mlp):
            handle = module.register_forward_pre_hook(explode)
            with pytest.raises(ArithmeticError):
                model(ids, state=state)
            handle.remove()
            hidden = torch.randn(1, 6, 32)
            assert torch.equal(attention.q_proj(hidden), hidden @ attention.q_proj.weight.T)
            assert torch.equal(model.backbone(ids).logits, plain)
            assert torch.equal(model(ids, state=state).logits, expected.logits)


def same_state(one: DeltaMemOutput, other: DeltaMemOutput) -> bool:
    return torch.equal(one.state.tensor, other.state.tensor)


def explode(*_: object) -> None:
    raise ArithmeticError


class TestCompile:
    @pytest.fixture(autouse=True)
    def _fresh(self) -> None:
        torch._dynamo.reset()

    def check(self, backend: str, *kinds: str) -> None:
        model, ids = adapted(backbone=tiny(num_hidden_layers=1)), tokens(2, LENGTH)
        mask = torch.ones_like(ids)
        mask[1, :4] = 0
        state, real = start(model, 2), mask.bool()
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        for kind in kinds:
            arguments = {"writes": {"write": True}, "reads": {"write": False}, "padded": {"attention_mask": mask}}[kind]
            expected, found = model(ids, state=state, **arguments), compiled(ids, state=state, **arguments)
            where = real if "attention_mask" in arguments else torch.ones_like(real)
            assert close(found.logits[where], expected.logits[where])
            assert close(found.state.tensor, expected.state.tensor)
            assert found.past_key_values.get_seq_length() == LENGTH

    @torch.no_grad()
    def test_traces_without_a_break(self) -> None:
        self.check("eager", "padded")

    @pytest.mark.slow
    @torch.no_grad()
    def test_inductor(self) -> None:
        self.check("inductor", "writes", "reads", "padded")

    @torch.no_grad()
    def test_compiled_forwards_of_two_threads_do_not_mix(self) -> None:
        model, ids = adapted(backbone=tiny(num_hidden_layers=1)), tokens(1, 6)
        states = [start(model), model.zero_state()]
        expected = [model(ids, state=s, use_cache=False) for s in states]
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        compiled(ids, state=states[0], use_cache=False)
        barrier, wrong = threading.Barrier(2), []

        def work(n: int) -> None:
            with torch.no_grad():
                for _ in range(10):
                    barrier.wait(60)
                    if not close(compiled(ids, state=states[n], use_cache=False).logits, expected[n].logits):
                        wrong.append(n)

        workers = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        assert not any(worker.is_alive() for worker in workers)
        assert not wrong

    @pytest.mark.slow
    def test_gradients_through_a_compiled_model(self) -> None:
        model, ids = adapted(backbone=tiny(num_hidden_layers=1)), tokens(1, 6)
        gradients = []
        for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
            model.zero_grad()
            out = run(ids, use_cache=False)
            (out.logits.square().mean() + out.state.tensor.square().mean()).backward()
            gradients.append([p.grad for p in model.adapter.parameters()])
        assert all(torch.allclose(one, other, atol=1e-6, rtol=1e-4) for one, other in zip(*gradients, strict=True))


def test_randomised_weights_are_the_same_every_time() -> None:
    assert randomised(adapted().adapter).fingerprint() == adapted().adapter.fingerprint()
