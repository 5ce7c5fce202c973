"""The compiled recurrence with its gradients: what training on a CPU runs.

The forward keeps nothing but its inputs; the backward walks the sequence once more to have every S_{t−1}, then back.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

Floats = NDArray[np.float32]
_Function = TypeVar("_Function", bound=Callable[..., object])


def _jit(function: _Function) -> _Function:
    try:
        return cast("_Function", numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})(function))
    except RuntimeError:  # no folder for the cache can be written
        return cast("_Function", numba.njit(nogil=True, fastmath={"contract", "reassoc"})(function))


@_jit
def _forward(
    q: Floats, k: Floats, v: Floats, keep: Floats, erase: Floats, write: Floats, states: Floats, reads: Floats
) -> None:
    """One row and head; q … write and reads [T, r]; states [T + 1, r, r], of which the first is given."""
    tokens, rank = q.shape
    for t in range(tokens):
        for i in range(rank):
            read = np.float32(0)
            recalled = np.float32(0)
            for j in range(rank):
                read += states[t, i, j] * q[t, j]
                recalled += states[t, i, j] * k[t, j]
            reads[t, i] = read
            update = write[t, i] * v[t, i] - erase[t, i] * recalled
            for j in range(rank):
                states[t + 1, i, j] = keep[t, i] * states[t, i, j] + update * k[t, j]


@_jit
def _backward(
    q: Floats,
    k: Floats,
    v: Floats,
    keep: Floats,
    erase: Floats,
    write: Floats,
    states: Floats,
    grad_reads: Floats,
    grad: Floats,
    out: Floats,
) -> None:
    """Gradients of one row and head into `out` [6, T, r]; `grad` [r, r] holds ∂L/∂S_T and becomes ∂L/∂S_0."""
    tokens, rank = q.shape
    for t in range(tokens - 1, -1, -1):
        for j in range(rank):
            out[0, t, j] = np.float32(0)
            out[1, t, j] = np.float32(0)
        for i in range(rank):
            recalled = np.float32(0)
            grad_update = np.float32(0)
            grad_keep = np.float32(0)
            for j in range(rank):
                recalled += states[t, i, j] * k[t, j]
                grad_update += grad[i, j] * k[t, j]
                grad_keep += grad[i, j] * states[t, i, j]
            update = write[t, i] * v[t, i] - erase[t, i] * recalled
            grad_recalled = -erase[t, i] * grad_update
            out[2, t, i] = grad_update * write[t, i]
            out[3, t, i] = grad_keep
            out[4, t, i] = -grad_update * recalled
            out[5, t, i] = grad_update * v[t, i]
            for j in range(rank):
                out[0, t, j] += grad_reads[t, i] * states[t, i, j]
                out[1, t, j] += grad[i, j] * update + grad_recalled * states[t, i, j]
                grad[i, j] = keep[t, i] * grad[i, j] + grad_recalled * k[t, j] + grad_reads[t, i] * q[t, j]


@_jit
def _scan(inputs: Floats, state: Floats, reads: Floats, new_state: Floats) -> None:
    """Inputs [6, X, T, r] (q, k, v, keep, erase, write), state [X, r, r] -> reads [X, T, r] and new_state."""
    _, rows, tokens, rank = inputs.shape
    states = np.empty((tokens + 1, rank, rank), np.float32)
    for x in range(rows):
        states[0] = state[x]
        q, k, v, keep, erase, write = inputs[0, x], inputs[1, x], inputs[2, x], inputs[3, x], inputs[4, x], inputs[5, x]
        _forward(q, k, v, keep, erase, write, states, reads[x])
        new_state[x] = states[tokens]


@_jit
def _scan_backward(
    inputs: Floats, state: Floats, grad_reads: Floats, grad_new_state: Floats, grads: Floats, grad_state: Floats
) -> None:
    """Gradients of `_scan` into grads [6, X, T, r] and grad_state [X, r, r]."""
    _, rows, tokens, rank = inputs.shape
    states = np.empty((tokens + 1, rank, rank), np.float32)
    reads = np.empty((tokens, rank), np.float32)
    for x in range(rows):
        states[0] = state[x]
        q, k, v, keep, erase, write = inputs[0, x], inputs[1, x], inputs[2, x], inputs[3, x], inputs[4, x], inputs[5, x]
        _forward(q, k, v, keep, erase, write, states, reads)
        grad_state[x] = grad_new_state[x]
        _backward(q, k, v, keep, erase, write, states, grad_reads[x], grad_state[x], grads[:, x])


def _fold(x: Tensor) -> Tensor:
    """[B, T, N, r] -> [B·N, T, r]."""
    return x.transpose(1, 2).flatten(0, 1)


def _unfold(x: Tensor, batch: int, heads: int) -> Tensor:
    """[B·N, T, r] -> [B, T, N, r]."""
    return x.view(batch, heads, *x.shape[1:]).transpose(1, 2)


class DifferentiableDeltaRule(torch.autograd.Function):
    """The recurrence as an autograd function; see `deltamem_agents.ops.differentiable_delta_rule`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The recurrence; keeps its inputs for the backward."""
        batch, tokens, heads, rank = q.shape
        inputs = torch.stack([_fold(x) for x in (q, k, v, keep, erase, write)])
        start = state.flatten(0, 1).contiguous()
        reads, new_state = inputs.new_empty(batch * heads, tokens, rank), torch.empty_like(start)
        _scan(inputs.numpy(), start.numpy(), reads.numpy(), new_state.numpy())
        ctx.save_for_backward(inputs, start)
        ctx.shape = state.shape
        return _unfold(reads, batch, heads), new_state.view(state.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_reads: Tensor, grad_new_state: Tensor) -> tuple[Tensor, ...]:
        """Gradients of all seven inputs."""
        inputs, start = ctx.saved_tensors
        grads, grad_state = torch.empty_like(inputs), torch.empty_like(start)
        _scan_backward(
            inputs.numpy(),
            start.numpy(),
            _fold(grad_reads).contiguous().numpy(),
            grad_new_state.flatten(0, 1).contiguous().numpy(),
            grads.numpy(),
            grad_state.numpy(),
        )
        return (*(_unfold(g, *ctx.shape[:2]) for g in grads), grad_state.view(ctx.shape))
