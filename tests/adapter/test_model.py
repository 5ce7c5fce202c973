"""A memory in any decoder: the same tokens give the same logits and states, however they are cut, padded or batched."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltamem_agents.adapter import DeltaMemModel, DeltaMemOutput
from deltamem_agents.errors import AdapterError, StateError
from deltamem_agents.state import MemoryState
from tests.adapter.running import LENGTH, close, family, hooks_of, mechanism, start
from tests.builders import MECHANISMS, adapted, tiny, tokens, warm


@cache
def model_of(family: str, mechanism: str = "gated", **options: object) -> DeltaMemModel:
    """Shared by tests that only run it."""
    return adapted(family, **MECHANISMS[mechanism], **options)


def same_rows(found: DeltaMemOutput, expected: DeltaMemOutput, row: int | None = None) -> bool:
    """Whether memory and carry are the same; or those of one row, which the other forward had by itself."""
    pairs = [(found.state.tensor, expected.state.tensor)]
    if expected.carry is not None:
        assert found.carry is not None
        pairs.append((found.carry, expected.carry))
    return all(close(f if row is None else f[row : row + 1], e) for f, e in pairs)


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
