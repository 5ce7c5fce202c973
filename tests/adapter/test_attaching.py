"""Attaching a memory to a model and taking it off again; what is refused; training the adapter alone."""

import pytest
import torch
from torch import Tensor, nn

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel, backbone_fingerprint
from deltamem_agents.adapter.attach import find_attention
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import AdapterError, FingerprintError, UnsupportedArchitectureError
from deltamem_agents.state import MemoryState
from tests.adapter.running import LENGTH, close, hooks_of, start
from tests.builders import REFUSED, UNHANDED, adapted, tiny, tokens, warm


class TestAttaching:
    @torch.no_grad()
    def test_the_backbone_is_untouched_outside_a_memory_forward(self) -> None:
        backbone, ids = tiny(), tokens(2, LENGTH)
        plain = backbone(ids).logits
        model = adapted(backbone=backbone)
        model(ids)
        assert torch.equal(backbone(ids).logits, plain)
        assert torch.equal(backbone.generate(ids, max_new_tokens=2), model.detach().generate(ids, max_new_tokens=2))

    def test_detach_gives_everything_back(self) -> None:
        backbone = tiny()
        frozen = next(backbone.parameters()).requires_grad_(False)
        model = adapted(backbone=backbone)
        assert not any(p.requires_grad for p in backbone.parameters())
        model.detach()
        assert [p for p in backbone.parameters() if not p.requires_grad] == [frozen]
        assert hooks_of(backbone) == 0
        adapted(backbone=backbone)

    def test_one_memory_at_a_time(self) -> None:
        backbone = tiny()
        first = adapted(backbone=backbone)
        before = hooks_of(backbone)
        with pytest.raises(AdapterError, match=r"model.layers.0.self_attn carries a memory already"):
            adapted(backbone=backbone)
        assert hooks_of(backbone) == before
        first.detach()

    def test_a_failed_attachment_leaves_no_hooks(self) -> None:
        backbone = tiny()
        deep = adapted(backbone=backbone, target_layers=(1,))
        with pytest.raises(AdapterError, match=r"model.layers.1.self_attn carries"):
            adapted(backbone=backbone)  # its first layer is free
        deep.detach()
        assert hooks_of(backbone) == 0

    @torch.no_grad()
    def test_some_layers_only(self) -> None:
        model, ids = adapted(target_layers=(1,)), tokens(2, LENGTH)
        assert model.adapter.paths == ("model.layers.1.self_attn",)
        whole, first = model(ids), model(ids[:, :5])
        rest = model(ids[:, 5:], **warm(first))
        assert close(rest.logits, whole.logits[:, 5:])
        assert not torch.equal(whole.logits, model.detach()(ids).logits)

    def test_layers_that_are_not_there(self) -> None:
        with pytest.raises(AdapterError, match=r"\[5\].*\[0, 1\]"):
            adapted(target_layers=(1, 5))

    def test_another_backbone(self) -> None:
        adapter = DeltaMemAdapter.initialize(DeltaMemConfig(rank=4), tiny("Llama"))
        other = tiny("Qwen2")
        with pytest.raises(FingerprintError) as error:
            DeltaMemModel(other, adapter)
        assert backbone_fingerprint(tiny("Llama")) in str(error.value)
        assert backbone_fingerprint(other) in str(error.value)
        adapter.backbone = None  # as in a published adapter, which does not say
        DeltaMemModel(other, adapter).detach()
        with pytest.raises(AdapterError, match=r"hidden=32.*hidden=64"):
            DeltaMemModel(tiny("Llama", hidden_size=64), adapter)
        with pytest.raises(AdapterError, match=r"layer for model.layers.0.self_attn.*model.decoder.layers.0"):
            DeltaMemModel(tiny("OPT"), adapter)

    @torch.no_grad()
    def test_each_correction_lands_in_its_projection(self) -> None:
        """q, k, v and o alone, packed or not: a projection's output moves by s·Δρ, and only that one's."""
        for name in ("Llama", "Phi3"):
            for projection in ("q", "k", "v", "o"):
                model, ids = adapted(name, delta_heads=(projection,), target_layers=(0,)), tokens(1, LENGTH)
                state = start(model)
                seen = [outputs_of(model, ids, s) for s in (state, model.zero_state())]
                moved = {p for p in seen[0] if not torch.equal(seen[0][p], seen[1][p])}
                assert moved == {projection} | ({"o"} if projection != "o" else set()), (name, projection)

    @torch.no_grad()
    def test_corrections_follow_the_equation(self) -> None:
        for name in ("Llama", "Phi3"):
            model, ids = adapted(name, target_layers=(0,)), tokens(1, LENGTH)
            state = start(model)
            with_memory, without = (outputs_of(model, ids, s) for s in (state, model.zero_state()))
            layer = model.adapter.layers["model.layers.0.self_attn"]
            hidden = model.backbone.model.layers[0].input_layernorm(model.backbone.model.embed_tokens(ids))
            reads = layer(hidden, state.tensor[:, 0], write=False)[0]
            for projection in ("q", "k", "v"):
                expected = without[projection] + reads @ layer.delta[projection].T * (4.0 / 4)
                assert close(with_memory[projection], expected), (name, projection)


def outputs_of(model: DeltaMemModel, ids: Tensor, state: MemoryState) -> dict[str, Tensor]:
    """What the projections of the first attention module put out, reading `state`."""
    attention, found = model.backbone.model.layers[0].self_attn, {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, args: object, out: Tensor) -> None:
            found[name] = out

        return hook

    handles = [m.register_forward_hook(keep(n)) for n, m in attention.named_children() if n.endswith("_proj")]
    model(ids, state=state, write=False)
    for handle in handles:
        handle.remove()
    shape = next(iter(model.adapter.layers.values())).shape
    if "qkv_proj" in found:
        q, k, v = found.pop("qkv_proj").split([shape.q, shape.k, shape.v], -1)
        return {"q": q, "k": k, "v": v, "o": found["o_proj"]}
    return {name.removesuffix("_proj"): out for name, out in found.items()}


class TestRefusals:
    @pytest.mark.parametrize(
        ("family", "message"),
        [
            ("Qwen3Next", r"model.layers.0.self_attn.q_proj has 64 outputs but o_proj takes 32"),
            ("Gemma3nText", r"model.layers.2.self_attn shares its keys and values"),
            ("DeepseekV3", r"model.layers.0.self_attn \(DeepseekV3Attention\) has no linear q_proj, k_proj, v_proj"),
            ("GPT2", r"transformer.h.0.attn \(GPT2Attention\) with c_attn, c_proj"),
            ("GPTNeoX", r"gpt_neox.layers.0.attention \(GPTNeoXAttention\) has no linear q_proj"),
            ("Falcon", r"transformer.h.0.self_attention \(FalconAttention\) has no linear q_proj"),
            ("CodeGen", r"transformer.h.0.attn.qkv_proj \(CodeGenAttention\).*unknown packing"),
            ("Mamba", r"MambaForCausalLM has no attention modules .* none at all"),
            ("Bart", r"BartForConditionalGeneration is an encoder with a decoder"),
        ],
    )
    def test_at_once(self, family: str, message: str) -> None:
        with pytest.raises(UnsupportedArchitectureError, match=message):
            find_attention(tiny(family))

    def test_every_refused_family_is_tried(self) -> None:
        assert {case[0] for mark in self.test_at_once.pytestmark for case in mark.args[1]} == set(REFUSED)

    def test_linear_attention_beside_full_attention(self) -> None:
        mixed = tiny("Qwen3Next", layer_types=["linear_attention", "full_attention"])
        with pytest.raises(UnsupportedArchitectureError, match=r"layers.0.linear_attn \(Qwen3NextGatedDeltaNet\)"):
            find_attention(mixed)

    @pytest.mark.parametrize("family", UNHANDED)
    @pytest.mark.parametrize("write", [True, False])
    @torch.no_grad()
    def test_at_the_first_forward(self, family: str, write: bool) -> None:
        """Reading too: a memory that is silently not read would look like one that does not help."""
        with pytest.raises(UnsupportedArchitectureError, match=r"0\.(self_)?attn saw nothing .* does not hand"):
            adapted(family)(tokens(1, 4), write=write)


class TestTraining:
    def loss(self, model: DeltaMemModel) -> Tensor:
        """Two forwards, so that gradients also flow through the state between them."""
        first = model(tokens(2, LENGTH, seed=1), use_cache=False)
        second = model(tokens(2, 8, seed=2), state=first.state, use_cache=False)
        return second.logits.square().mean() + second.state.tensor.square().mean()

    def gradients(self, model: DeltaMemModel) -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        self.loss(model).backward()
        return {name: p.grad.clone() for name, p in model.adapter.named_parameters() if p.grad is not None}

    @pytest.mark.parametrize("family", ["Llama", "Phi3", "Gemma3Text"])
    def test_checkpointing_changes_no_gradient(self, family: str) -> None:
        model = adapted(family)
        model.train()
        plain = self.gradients(model)
        model.backbone.gradient_checkpointing_enable()
        runs: list[nn.Module] = []
        attention = model.backbone.get_decoder().layers[0].self_attn
        attention.register_forward_pre_hook(lambda module, _: runs.append(module))
        saved = self.gradients(model)
        assert len(runs) == 4  # two forwards, both replayed
        assert plain.keys() == saved.keys() == dict(model.adapter.named_parameters()).keys()
        assert all(torch.allclose(saved[n], g, atol=1e-6, rtol=1e-4) for n, g in plain.items())

    def test_gradients_reach_earlier_forwards_through_the_state(self) -> None:
        model = adapted()
        first = model(tokens(1, LENGTH), use_cache=False)
        first.state.tensor.retain_grad()
        model(tokens(1, 4, seed=3), state=first.state, use_cache=False).logits.square().mean().backward()
        assert first.state.tensor.grad is not None
        assert first.state.tensor.grad.any()

    @pytest.mark.parametrize("write", [True, False])
    def test_reentrant_checkpointing_is_refused(self, write: bool) -> None:
        """It runs the first pass without gradients, so none would come through the state."""
        model = adapted()
        model.train()
        model.backbone.gradient_checkpointing_enable({"use_reentrant": True})
        with pytest.raises(AdapterError, match=r"layers.0.self_attn runs without gradients.*use_reentrant=False"):
            model(tokens(1, 4), write=write, use_cache=False)

    def test_a_replayed_forward_changes_nothing(self) -> None:
        model = adapted()
        model.train()
        model.backbone.gradient_checkpointing_enable()
        state = start(model)
        before = state.tensor.clone()
        out = model(tokens(1, LENGTH), state=state, use_cache=False)
        after = out.state.tensor.detach().clone()
        out.logits.square().mean().backward()
        assert torch.equal(state.tensor, before)
        assert torch.equal(out.state.tensor, after)
