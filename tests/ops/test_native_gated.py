"""The one-call native memory against the same thing composed in plain torch."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_agents.config import StateUpdateMode
from deltamem_agents.ops import naive_delta_rule, native_available, native_gated_delta_rule

MODES: list[StateUpdateMode] = ["standard", "lambda_outside", "no_lambda"]
pytestmark = pytest.mark.skipif(not native_available(), reason="numba can't be imported here")


def composed(
    projected: Tensor, bias: Tensor, state: Tensor, writable: Tensor | None, *, mode: str, normalize: bool, count: int
) -> tuple[Tensor, Tensor]:
    """What `native_gated_delta_rule` computes, in plain torch: `count` gates of a kind, λ free if there are two."""
    batch, heads, rank, _ = state.shape
    width, tokens = heads * rank, projected.shape[1]
    q, k, v = (projected[..., i * width : (i + 1) * width].view(batch, tokens, heads, rank) for i in range(3))
    if normalize:
        q, k = (F.normalize(torch.tanh(x), dim=-1, eps=1e-6) for x in (q, k))
    gates = torch.sigmoid(projected[..., 3 * width :] + bias)
    gates = gates.view(batch, tokens, bias.numel() // count, heads, count // heads).expand(-1, -1, -1, -1, rank)
    beta = gates[:, :, 0]
    lam = gates[:, :, 1] if gates.shape[2] == 2 else 1 - beta
    keep = torch.ones_like(lam) if mode == "no_lambda" else lam
    erase = lam * beta if mode == "lambda_outside" else beta
    on = torch.ones(batch, tokens, dtype=torch.bool) if writable is None else writable
    on = on[..., None, None]
    keep, erase, write = torch.where(on, keep, 1.0), torch.where(on, erase, 0.0), torch.where(on, beta, 0.0)
    reads, new_state = naive_delta_rule(q, k, v, keep, erase, write, state)
    return reads.flatten(2), new_state


def fused_inputs(
    tokens: int, heads: int, rank: int, *, kinds: int, rankwise: bool, batch: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """projected, gate_bias, state, writable, and the number of gates of a kind."""
    generator = torch.Generator().manual_seed(seed)
    width = heads * rank
    count = width if rankwise else heads
    projected = torch.randn(batch, tokens, 3 * width + kinds * count, generator=generator)
    bias = torch.randn(kinds * count, generator=generator) - 1
    state = torch.randn(batch, heads, rank, rank, generator=generator)
    return projected, bias, state, torch.rand(batch, tokens, generator=generator) < 0.6, count


@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize("rank", [4, 6, 8])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kinds", [1, 2], ids=["coupled", "free"])
def test_fused_equals_composition(heads: int, rank: int, mode: StateUpdateMode, kinds: int) -> None:
    options = itertools.product([True, False], [True, False], [True, False], [1, 77, 130])
    for rankwise, normalize, masked, tokens in options:
        projected, bias, state, mask, count = fused_inputs(tokens, heads, rank, kinds=kinds, rankwise=rankwise)
        if not normalize:
            projected = projected * rank**-0.5  # long keys make the recurrence itself blow up
        writable = mask if masked else None
        inputs = [x.clone() for x in (projected, bias, state, mask)]
        found = native_gated_delta_rule(
            projected, bias, state, writable, state_update_mode=mode, rankwise_gates=rankwise, normalize_qk=normalize
        )
        double = (x.double() for x in (projected, bias, state))
        expected = composed(*double, writable, mode=mode, normalize=normalize, count=count)
        torch.testing.assert_close([x.double() for x in found[:2]], list(expected), rtol=3e-5, atol=3e-5)
        assert all(torch.equal(x, y) for x, y in zip(inputs, (projected, bias, state, mask), strict=True))


STANDARD_OPTIONS = {"state_update_mode": "standard", "rankwise_gates": True, "normalize_qk": True}


@pytest.mark.parametrize("tokens", [0, 1, 70])
@pytest.mark.parametrize("normalize", [True, False])
def test_fused_without_writes_returns_the_same_state(tokens: int, normalize: bool) -> None:
    projected, bias, state, mask, count = fused_inputs(tokens, 4, 8, kinds=2, rankwise=True)
    before = state.clone()
    options = STANDARD_OPTIONS | {"normalize_qk": normalize}
    reads, same = native_gated_delta_rule(projected, bias, state, mask, **options, writes=False)
    assert same is state
    assert torch.equal(state, before)
    nothing = torch.zeros_like(mask)
    expected, _ = composed(projected, bias, state, nothing, mode="standard", normalize=normalize, count=count)
    torch.testing.assert_close(reads, expected, rtol=1e-5, atol=1e-5)
    masked_reads, unchanged = native_gated_delta_rule(projected, bias, state, nothing, **options)
    assert torch.equal(masked_reads, reads)
    assert torch.equal(unchanged, state)


@pytest.mark.parametrize("split", [0, 1, 64, 100])
def test_fused_split_equals_whole_bit_for_bit(split: int) -> None:
    projected, bias, state, mask, _ = fused_inputs(130, 4, 8, kinds=2, rankwise=True)
    whole, last = native_gated_delta_rule(projected, bias, state, mask, **STANDARD_OPTIONS)
    reads = []
    for part in (slice(None, split), slice(split, None)):
        read, state = native_gated_delta_rule(projected[:, part], bias, state, mask[:, part], **STANDARD_OPTIONS)
        reads.append(read)
    assert torch.equal(torch.cat(reads, 1), whole)
    assert torch.equal(state, last)


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-4, 30.0, 1e30])
def test_fused_is_exact_for_tiny_and_huge_projections(scale: float) -> None:
    projected, bias, state, mask, count = fused_inputs(40, 2, 8, kinds=2, rankwise=True)
    v = slice(2 * 16, 3 * 16)
    projected = torch.cat([projected[..., :32] * scale, projected[..., v], projected[..., 48:] * scale], -1)
    found = native_gated_delta_rule(projected, bias, state, mask, **STANDARD_OPTIONS)
    double = (x.double() for x in (projected, bias, state))
    expected = composed(*double, mask, mode="standard", normalize=True, count=count)
    torch.testing.assert_close([x.double() for x in found[:2]], list(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", range(5), ids=["q", "k", "v", "beta", "lambda"])
def test_fused_lets_nan_through(part: int) -> None:
    projected, bias, state, *_ = fused_inputs(20, 2, 8, kinds=2, rankwise=True, batch=1)
    projected[:, 5, 16 * part : 16 * (part + 1)] = torch.nan
    reads, new_state = native_gated_delta_rule(projected, bias, state, None, **STANDARD_OPTIONS)
    assert reads[:, :5].isfinite().all()
    assert reads[:, 5 if part == 0 else 6].isnan().all()
    assert new_state.isnan().all() == (part != 0)


def test_fused_keeps_nan_of_padding_out_of_the_state() -> None:
    projected, bias, state, mask, _ = fused_inputs(20, 2, 8, kinds=2, rankwise=True, batch=1)
    mask[:, 5:] = True
    mask[:, :5] = False
    clean = native_gated_delta_rule(projected[:, 5:], bias, state, mask[:, 5:], **STANDARD_OPTIONS)[1]
    projected[:, :5] = torch.nan
    reads, new_state = native_gated_delta_rule(projected, bias, state, mask, **STANDARD_OPTIONS)
    assert torch.equal(new_state, clean)
    assert reads[:, 5:].isfinite().all()


def test_native_runs_in_threads() -> None:
    inputs = [fused_inputs(50, 4, 8, kinds=2, rankwise=True, seed=seed)[:4] for seed in range(16)]
    expected = [native_gated_delta_rule(*x, **STANDARD_OPTIONS) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: native_gated_delta_rule(*x, **STANDARD_OPTIONS), inputs))
    assert all(torch.equal(a[i], b[i]) for a, b in zip(found, expected, strict=True) for i in (0, 1))


def test_fused_refuses_what_does_not_fit() -> None:
    projected, bias, state, mask, _ = fused_inputs(3, 4, 8, kinds=2, rankwise=True)
    with pytest.raises(ValueError, match=r"projected has shape \[2, 3, 128\], expected \[2, 3, 160\]"):
        native_gated_delta_rule(projected[..., :128], bias, state, None, **STANDARD_OPTIONS)
    with pytest.raises(ValueError, match="gate_bias has shape"):
        native_gated_delta_rule(projected, bias, state, None, **(STANDARD_OPTIONS | {"rankwise_gates": False}))
    with pytest.raises(ValueError, match="writable has shape"):
        native_gated_delta_rule(projected, bias, state, mask[:, :2], **STANDARD_OPTIONS)
    with pytest.raises(TypeError, match="writable is"):
        native_gated_delta_rule(projected, bias, state, mask.float(), **STANDARD_OPTIONS)
    with pytest.raises(RuntimeError, match="projected requires a gradient"):
        native_gated_delta_rule(projected.requires_grad_(), bias, state, mask, **STANDARD_OPTIONS)
    with torch.no_grad():  # a trained adapter's parameters require gradients, and that is fine here
        native_gated_delta_rule(projected, bias.requires_grad_(), state, mask, **STANDARD_OPTIONS)
