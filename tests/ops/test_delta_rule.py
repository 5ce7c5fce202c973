"""Every path of the scan against the token-by-token one: outputs, gradients, odd lengths, splits, masks, strides."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltamem_agents import ops
from deltamem_agents.ops import (
    chunked_delta_rule,
    delta_rule,
    naive_delta_rule,
    native_available,
    native_delta_rule,
)

LENGTHS = [1, 2, 5, 31, 32, 33, 77]
needs_native = pytest.mark.skipif(not native_available(), reason="numba can't be imported here")


def random_inputs(
    tokens: int, *, batch: int = 2, heads: int = 3, rank: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    """q, k, v, keep, erase, write [B, T, N, r] and a non-zero state [B, N, r, r]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, tokens, heads, rank)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    keep, erase, write = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    state = torch.randn((batch, heads, rank, rank), generator=generator, dtype=torch.float64)
    return [x.to(dtype) for x in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, keep, erase, write, state)]


def gradients(rule, inputs: list[Tensor], **options: int) -> list[Tensor]:
    """Gradients of every input, for a fixed random cotangent of both results."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    results = rule(*leaves, **options)
    generator = torch.Generator().manual_seed(99)
    cotangents = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in results]
    return list(torch.autograd.grad(results, leaves, cotangents))


def assert_equal(found, expected, tolerance: float = 1e-10) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_naive_is_the_equation() -> None:
    q, k, v, keep, erase, write, state = random_inputs(4, batch=1, heads=1, rank=4)
    reads, new_state = naive_delta_rule(q, k, v, keep, erase, write, state)
    s = state[0, 0]
    for t in range(4):
        torch.testing.assert_close(reads[0, t, 0], s @ q[0, t, 0])
        key = k[0, t, 0]
        s = (
            torch.diag(keep[0, t, 0]) @ s
            - torch.diag(erase[0, t, 0]) @ torch.outer(s @ key, key)
            + torch.diag(write[0, t, 0]) @ torch.outer(v[0, t, 0], key)
        )
    torch.testing.assert_close(new_state[0, 0], s)


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("chunk_size", [1, 7, 16, 32])
def test_chunked_equals_naive(tokens: int, chunk_size: int) -> None:
    inputs = random_inputs(tokens, seed=tokens)
    assert_equal(chunked_delta_rule(*inputs, chunk_size=chunk_size), naive_delta_rule(*inputs))


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("chunk_size", [7, 32])
def test_chunked_gradients_equal_naive(tokens: int, chunk_size: int) -> None:
    inputs = random_inputs(tokens, rank=4, seed=tokens)
    assert_equal(gradients(chunked_delta_rule, inputs, chunk_size=chunk_size), gradients(naive_delta_rule, inputs))


def test_chunked_gradcheck() -> None:
    inputs = [x.requires_grad_() for x in random_inputs(5, batch=1, heads=2, rank=2)]
    assert torch.autograd.gradcheck(lambda *x: chunked_delta_rule(*x, chunk_size=2), inputs)


@needs_native
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize(("batch", "heads", "rank"), [(1, 1, 8), (2, 4, 8), (3, 3, 5), (1, 2, 1), (1, 2, 16)])
def test_native_equals_naive(tokens: int, batch: int, heads: int, rank: int) -> None:
    inputs = random_inputs(tokens, batch=batch, heads=heads, rank=rank, dtype=torch.float32, seed=tokens)
    assert_equal(native_delta_rule(*inputs), naive_delta_rule(*inputs), 1e-5)


@needs_native
def test_native_takes_strided_views_and_changes_no_input() -> None:
    inputs = random_inputs(33, dtype=torch.float32)
    packed = torch.stack(inputs[:6], -1)  # each argument has stride 6 in its last dimension
    views = [*packed.unbind(-1), inputs[6].mT.contiguous().mT]
    views[3] = views[3][..., :1].expand_as(views[3])  # a gate per head: stride 0
    assert not any(x.is_contiguous() for x in views)
    before = [x.clone() for x in views]
    expected = naive_delta_rule(*before)
    reads, state = native_delta_rule(*views)
    assert_equal([reads, state], expected, 1e-5)
    assert all(torch.equal(x, y) for x, y in zip(views, before, strict=True))


PATHS = [
    naive_delta_rule,
    chunked_delta_rule,
    delta_rule,
    pytest.param(native_delta_rule, marks=needs_native),
]


@pytest.mark.parametrize("rule", PATHS)
@pytest.mark.parametrize("tokens", [0, 1, 40])
def test_identity_steps_read_and_leave_the_state_alone(rule, tokens: int) -> None:
    q, k, v, keep, none, _, state = random_inputs(tokens, dtype=torch.float32)
    none = torch.zeros_like(none)
    reads, new_state = rule(q, k, v, torch.ones_like(keep), none, none, state)
    assert reads.shape == q.shape
    torch.testing.assert_close(reads, torch.einsum("bnij,btnj->btni", state, q))
    torch.testing.assert_close(new_state, state, rtol=0, atol=2e-6)


@pytest.mark.parametrize("rule", PATHS)
@pytest.mark.parametrize("split", [0, 1, 31, 32, 50, 77])
def test_split_equals_whole(rule, split: int) -> None:
    *inputs, state = random_inputs(77, dtype=torch.float32)
    first, middle = rule(*[x[:, :split] for x in inputs], state)
    second, last = rule(*[x[:, split:] for x in inputs], middle)
    assert_equal([torch.cat([first, second], 1), last], rule(*inputs, state), 1e-5)


@pytest.mark.parametrize("rule", PATHS)
@pytest.mark.parametrize("keep_value", [0.0, 1e-38, 1e-4, 1.0])
def test_vanishing_keep_and_repeated_keys_stay_finite(rule, keep_value: float) -> None:
    q, k, v, keep, erase, write, state = random_inputs(100, dtype=torch.float32)
    keep = torch.where(torch.arange(100)[:, None, None] % 3 == 0, keep_value, keep)
    k = k[:, :1].expand_as(k)
    inputs = q, k, v, keep, torch.ones_like(erase), write, state
    results = rule(*inputs)
    assert all(x.isfinite().all() for x in results)
    exact = naive_delta_rule(*[x.double() for x in inputs])
    assert_equal(results, [x.float() for x in exact], 1e-4)


def test_chunked_gradients_are_finite_where_keep_vanishes() -> None:
    inputs = random_inputs(40, dtype=torch.float32)
    inputs[3] = torch.zeros_like(inputs[3])
    inputs[1] = inputs[1][:, :1].expand_as(inputs[1])
    assert all(x.isfinite().all() for x in gradients(chunked_delta_rule, inputs))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 70),
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    rank=st.integers(1, 9),
    grad=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_delta_rule_equals_naive_whatever_it_chooses(
    tokens: int, batch: int, heads: int, rank: int, grad: bool, seed: int
) -> None:
    inputs = random_inputs(tokens, batch=batch, heads=heads, rank=rank, dtype=torch.float32, seed=seed)
    expected = naive_delta_rule(*inputs)
    inputs[2].requires_grad_(grad)
    reads, state = delta_rule(*inputs)
    assert state.requires_grad == (grad and tokens > 0)  # a single token does not read its own write
    assert_equal([reads.detach(), state.detach()], expected, 3e-5)


@pytest.mark.parametrize("tokens", [1, 9])
def test_delta_rule_keeps_gradients_and_other_dtypes(tokens: int) -> None:
    inputs = random_inputs(tokens)
    assert_equal(delta_rule(*inputs), naive_delta_rule(*inputs))  # float64 stays float64
    assert_equal(gradients(delta_rule, inputs), gradients(naive_delta_rule, inputs))
    single = [x.float() for x in inputs]
    assert_equal(gradients(delta_rule, single), gradients(naive_delta_rule, single), 1e-4)
    with torch.no_grad():
        assert not delta_rule(*[x.requires_grad_() for x in single])[1].requires_grad


@needs_native
def test_native_refuses_what_it_would_get_wrong() -> None:
    inputs = random_inputs(3, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"write has shape \[2, 3, 3, 1\], expected \[2, 3, 3, 8\]"):
        native_delta_rule(*inputs[:5], inputs[5][..., :1], inputs[6])
    with pytest.raises(ValueError, match="state has shape"):
        native_delta_rule(*inputs[:6], inputs[6][:1])
    with pytest.raises(TypeError, match=r"v is torch\.float64"):
        native_delta_rule(*inputs[:2], inputs[2].double(), *inputs[3:])
    with pytest.raises(RuntimeError, match="k requires a gradient"):
        native_delta_rule(inputs[0], inputs[1].requires_grad_(), *inputs[2:])


def test_exports_are_sorted() -> None:
    assert ops.__all__ == sorted(ops.__all__)
    assert all(hasattr(ops, name) for name in ops.__all__)
