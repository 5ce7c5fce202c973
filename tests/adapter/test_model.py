"""A memory in any decoder: the same tokens give the same logits and states, however they are cut, padded or batched."""

import threading
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel, DeltaMemOutput, backbone_fingerprint
from deltamem_agents.adapter.attach import find_attention
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import AdapterError, FingerprintError, StateError, UnsupportedArchitectureError
from deltamem_agents.state import MemoryState
from tests.builders import FAMILIES, MECHANISMS, REFUSED, UNHANDED, adapted, randomised, tiny, tokens, warm

LENGTH = 13
TOLERANCE = 1e-4
family = pytest.mark.parametrize("family", FAMILIES)


mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)


@cache
def model_of(family: str, mechanism: str = "gated", **options: object) -> DeltaMemModel:
    """Shared by tests that only run it."""
    return adapted(family, **MECHANISMS[mechanism], **options)


def start(model: DeltaMemModel, rows: int = 1) -> MemoryState:
    """A memory with something in it."""
    with torch.no_grad():
        return model(tokens(rows, 9, seed=7), use_cache=False).state


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=TOLERANCE)


def same_rows(found: DeltaMemOutput, expected: DeltaMemOutput, row: int | None = None) -> bool:
    """Whether memory and carry are the same; or those of one row, which the other forward had by itself."""
    pairs = [(found.state.tensor, expected.state.tensor)]
    if expected.carry is not None:
        assert found.carry is not None
        pairs.append((found.carry, expected.carry))
    return all(close(f if row is None else f[row : row + 1], e) for f, e in pairs)


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks")
    kinds += ("_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds)


class TestEveryFamily:
    @family
    @mechanism
    @settings(max_examples=6)
    @given(cuts=st.sets(st.integers(1, LENGTH - 1), max_size=4))
    @torch.no_grad()
    def test_split_anywhere_is_the_whole(self, family: str, mechanism: str, cuts: set[int]) -> None:
        model, ids = model_of(family, mechanism), tokens(2, LENGTH)
        state = start(model, 2)
        whole = model(ids, state=state)
        logits, after = [], {"state": state}
        for chunk in ids.tensor_split(sorted(cuts), dim=1):
            out = model(chunk, **after)
            logits, after = [*logits, out.logits], warm(out)
        assert close(torch.cat(logits, 1), whole.logits)
        assert same_rows(out, whole)

    @family
    @mechanism
    @torch.no_grad()
    def test_prefill_then_decoding_is_the_whole(self, family: str, mechanism: str) -> None:
        model, ids = model_of(family, mechanism), tokens(2, LENGTH)
        whole = model(ids)
        out = model(ids[:, :8])
        for t in range(8, LENGTH):
            out = model(ids[:, t : t + 1], **warm(out))
            assert close(out.logits[:, 0], whole.logits[:, t])
        assert same_rows(out, whole)

    @family
    @torch.no_grad()
    def test_corrections_matter_and_an_empty_memory_is_the_backbone(self, family: str) -> None:
        model, ids = adapted(family), tokens(2, LENGTH)
        read, empty = model(ids, state=start(model, 2), write=False), model(ids, write=False)
        backbone = model.detach()
        plain = backbone(ids).logits
        assert torch.equal(empty.logits, plain)
        assert not empty.state.tensor.any()
        assert (read.logits - plain).abs().max() > 0.02
        assert hooks_of(backbone) == 0

    @family
    @pytest.mark.parametrize("left", [True, False])
    @mechanism
    @torch.no_grad()
    def test_padded_rows_are_the_rows_alone(self, family: str, mechanism: str, left: bool) -> None:
        model = model_of(family, mechanism)
        lengths = (LENGTH, 6, 9)
        state = start(model, len(lengths))
        rows = [tokens(1, n, seed=n) for n in lengths]
        ids, mask = torch.zeros(3, LENGTH, dtype=torch.long), torch.zeros(3, LENGTH, dtype=torch.long)
        for r, row in enumerate(rows):
            place = slice(LENGTH - row.shape[1], None) if left else slice(row.shape[1])
            ids[r, place], mask[r, place] = row[0], 1
        batch = model(ids, mask, state=state)
        for r, row in enumerate(rows):
            alone = model(row, state=state.rows(r))
            assert close(batch.logits[r][mask[r].bool()], alone.logits[0])
            assert same_rows(batch, alone, r)
        if not left:
            return
        token = tokens(3, 1, seed=5)
        after = model(token, torch.cat([mask, mask.new_ones(3, 1)], 1), **warm(batch))
        for r, row in enumerate(rows):
            alone = model(torch.cat([row, token[r : r + 1]], 1), state=state.rows(r))
            assert close(after.logits[r, -1], alone.logits[0, -1])
            assert same_rows(after, alone, r)

    @family
    @torch.no_grad()
    def test_eager_is_sdpa(self, family: str) -> None:
        model, ids = model_of(family), tokens(2, LENGTH)
        eager = DeltaMemModel(tiny(family, attention="eager"), model.adapter)
        mask = torch.ones_like(ids)
        mask[1, :4] = 0
        one, other = (m(ids, mask, state=start(model, 2)) for m in (model, eager))
        assert close(one.logits[mask.bool()], other.logits[mask.bool()])
        assert close(one.state.tensor, other.state.tensor)

    @family
    @torch.no_grad()
    def test_a_mask_of_ones_is_no_mask(self, family: str) -> None:
        model, ids = model_of(family), tokens(2, LENGTH)
        without, ones = model(ids), model(ids, torch.ones_like(ids))
        assert close(without.logits, ones.logits)
        assert close(without.state.tensor, ones.state.tensor)

    @family
    def test_gradients_reach_every_weight(self, family: str) -> None:
        model = adapted(family, trainable_delta_scale="projection", delta_o_rmsnorm=True)
        out = model(tokens(2, LENGTH), use_cache=False)
        (out.logits.square().mean() + out.state.tensor.square().mean()).backward()
        silent = [name for name, p in model.adapter.named_parameters() if p.grad is None or not p.grad.any()]
        assert not silent
        assert all(p.grad is None for p in model.backbone.parameters())


class TestWrites:
    @torch.no_grad()
    def test_a_mask_writes_its_tokens_and_no_others(self) -> None:
        model, ids = adapted(), tokens(2, LENGTH)
        on = torch.zeros(2, LENGTH, dtype=torch.bool)
        on[0, 4:8] = True
        out, state = model(ids, write=on, use_cache=False), start(model, 2)
        assert out.state.tensor[0].any()
        assert not out.state.tensor[1].any()
        everything, nothing = torch.ones_like(on), torch.zeros_like(on)
        assert close(model(ids, write=everything).state.tensor, model(ids, write=True).state.tensor)
        assert torch.equal(model(ids, state=state, write=nothing).state.tensor, state.tensor)
        assert close(model(ids, state=state, write=nothing).logits, model(ids, state=state, write=False).logits)

    @torch.no_grad()
    def test_unwritten_tokens_split_like_written_ones(self) -> None:
        model, ids = adapted(), tokens(1, LENGTH)
        on = torch.arange(LENGTH)[None] % 3 == 0
        whole = model(ids, write=on)
        first = model(ids[:, :5], write=on[:, :5])
        second = model(ids[:, 5:], write=on[:, 5:], **warm(first))
        assert close(second.logits, whole.logits[:, 5:])
        assert close(second.state.tensor, whole.state.tensor)

    @pytest.mark.parametrize("write", [True, torch.ones(2, LENGTH, dtype=torch.bool)], ids=["bool", "tensor"])
    @pytest.mark.parametrize("granularity", ["token", "message_mean"])
    @torch.no_grad()
    def test_padding_is_never_written(self, write: bool | Tensor, granularity: str) -> None:
        model = adapted(write_granularity=granularity)
        ids, mask = tokens(2, LENGTH), torch.zeros(2, LENGTH, dtype=torch.long)
        mask[0, 8:] = 1
        spans = torch.zeros(2, LENGTH, dtype=torch.long) if model.adapter.config.spans else None
        out = model(ids, mask, write=write, spans=spans)
        assert not out.state.tensor[1].any()
        alone = model(ids[:1, 8:], spans=None if spans is None else spans[:1, 8:])
        assert close(out.state.tensor[:1], alone.state.tensor)

    @torch.no_grad()
    def test_spans_split_at_their_ends(self) -> None:
        model, ids = adapted(write_granularity="message_mean"), tokens(1, LENGTH)
        first = model(ids[:, :5], spans=torch.zeros(1, 5, dtype=torch.long))
        second = model(
            ids[:, 5:],
            spans=torch.ones(1, LENGTH - 5, dtype=torch.long),
            **warm(first),
        )
        before = warm(model(ids[:, :5], write=False)) | {"state": first.state}
        repeat = model(ids[:, 5:], write=False, **before)
        assert close(second.logits, repeat.logits)  # a span is read by later forwards only
        assert not close(second.state.tensor, first.state.tensor)

    @torch.no_grad()
    def test_only_the_last_position(self) -> None:
        model, ids = adapted(), tokens(2, LENGTH)
        assert torch.allclose(model(ids, logits_to_keep=1).logits, model(ids).logits[:, -1:], atol=1e-6)


class TestReadGates:
    """On the whole model: where every gate is closed, the frozen model answers, bit for bit."""

    @family
    @torch.no_grad()
    def test_closed_in_every_layer_is_the_frozen_model(self, family: str) -> None:
        model, ids = adapted(family, **MECHANISMS["gated"]), tokens(2, LENGTH)
        state = start(model, 2)
        for layer in model.adapter.layers.values():
            layer.read_gate_bias.fill_(-1e3)
        whole, first = model(ids, state=state), model(ids[:, :5], state=state)
        rest = model(ids[:, 5:], **warm(first))
        assert not torch.equal(whole.state.tensor, state.tensor)  # it is written all the same
        backbone = model.detach()
        plain, cold = backbone(ids), backbone(ids[:, :5], use_cache=True)
        assert torch.equal(whole.logits, plain.logits)
        assert torch.equal(first.logits, cold.logits)
        assert torch.equal(rest.logits, backbone(ids[:, 5:], past_key_values=cold.past_key_values).logits)

    @torch.no_grad()
    def test_tokens_before_the_first_open_one_are_the_frozen_models(self) -> None:
        """A token after it sees, through keys and values, what was corrected there."""
        model, ids, at = adapted(**MECHANISMS["gated"]), tokens(1, LENGTH), 6
        state = start(model)
        for layer in model.adapter.layers.values():
            layer.read_gate_bias.fill_(-1e3)
        first = model.adapter.layers[model.adapter.paths[0]]
        hidden = model.backbone.model.layers[0].input_layernorm(model.backbone.model.embed_tokens(ids))[0]
        only_there = torch.linalg.pinv(hidden.double())[:, at]  # tokens repeat: the rows are linearly dependent
        assert torch.allclose(hidden.double() @ only_there, torch.eye(LENGTH, dtype=torch.float64)[at], atol=1e-9)
        first.in_proj[first.block["gate"]] = 4e3 * only_there.float()
        out = model(ids, state=state, write=False, read_gates=True)
        assert out.read_gates[0, :, 0].any(-1).tolist() == [t == at for t in range(LENGTH)]
        plain = model.detach()(ids).logits
        assert torch.equal(out.logits[:, :at], plain[:, :at])
        assert not torch.equal(out.logits[:, at], plain[:, at])

    @torch.no_grad()
    def test_gates_are_given_back_where_asked_for(self) -> None:
        model, ids = adapted(**MECHANISMS["gated"]), tokens(2, LENGTH)
        state = start(model, 2)
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        out, asked = model(ids, mask, state=state), model(ids, mask, state=state, read_gates=True)
        assert out.read_gates is None
        assert list(asked.read_gates.shape) == [2, LENGTH, 2, 2]
        assert 0 <= asked.read_gates.min() < asked.read_gates.max() <= 1
        assert close(asked.logits[mask.bool()], out.logits[mask.bool()])
        assert same_rows(asked, out)
        assert adapted(**MECHANISMS["published"])(ids, read_gates=True).read_gates is None


class TestArguments:
    @torch.no_grad()
    def test_what_does_not_fit_is_refused(self) -> None:
        model, ids = adapted(), tokens(2, LENGTH)
        fed = model(ids)
        wrong: list[dict[str, object]] = [
            {"state": model.zero_state(3)},
            {"state": MemoryState.zeros(2, 2, 2, 8)},
            {"state": MemoryState.zeros(2, 2, 2, 4, device="meta")},
            {"write": torch.ones(2, LENGTH)},
            {"write": torch.ones(LENGTH, dtype=torch.bool)},
            {"write": torch.ones(2, LENGTH + 1, dtype=torch.bool)},
            {"spans": torch.zeros(2, LENGTH)},
            {"spans": torch.zeros(1, LENGTH, dtype=torch.long)},
            {"attention_mask": torch.ones(2, LENGTH - 1)},
            {"attention_mask": torch.ones(1, LENGTH)},
            {"attention_mask": torch.ones(2, LENGTH), "past_key_values": fed.past_key_values, "carry": fed.carry},
            {"past_key_values": fed.past_key_values},
            {"carry": fed.carry[:1]},
            {"carry": fed.carry[:, :1]},
            {"carry": adapted(num_state_heads=3)(ids).carry},
            {"carry": fed.carry.double()},
            {"carry": torch.zeros(fed.carry.shape, device="meta")},
        ]
        for arguments in wrong:
            with pytest.raises(StateError, match=r"expected|on meta|13 tokens are cached, but their carry is missing"):
                model(ids, **arguments)

    @torch.no_grad()
    def test_a_carry_for_keys_that_do_not_see_the_token_before(self) -> None:
        carry, model = adapted()(tokens(1, 3)).carry, adapted(key_shift=False)
        with pytest.raises(StateError, match="keys don't see the token before: leave it out"):
            model(tokens(1, 3), carry=carry)
        assert model(tokens(1, 3)).carry is None

    def test_a_detached_model_does_not_run(self) -> None:
        model = adapted()
        model.detach()
        with pytest.raises(AdapterError, match="detached"):
            model(tokens(1, 3))


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
