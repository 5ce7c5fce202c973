"""Compiled loops for what is between the matrix products of one decoded token a row. Importing this imports numba."""

import numpy as np
from numpy.typing import NDArray

from deltamem_agents.ops.native_kernels import _expm1, _sigmoid
from deltamem_agents.ops.product_kernels import Floats, fast_jit

Integers = NDArray[np.int64]
_ZERO, _ONE = np.float32(0), np.float32(1)


@fast_jit
def _normalize(x: Floats, weight: Floats, eps: np.float32, out: Floats) -> None:
    """Sets out to weight · x / √(mean x² + eps); all [H]."""
    total = _ZERO
    for i in range(x.size):
        total += x[i] * x[i]
    factor = _ONE / np.sqrt(total / np.float32(x.size) + eps)
    for i in range(x.size):
        out[i] = weight[i] * (x[i] * factor)


@fast_jit
def add_and_normalize(x: Floats, more: Floats, weight: Floats, eps: float, out: Floats) -> None:
    """Adds `more` to x in place, and sets out to what its RMS norm makes of it; all [B, H], weight [H]."""
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[b, i] += more[b, i]
        _normalize(x[b], weight, np.float32(eps), out[b])


@fast_jit
def glu(gate: Floats, up: Floats, out: Floats) -> None:
    """Sets out to silu(gate) · up, all [B, I]."""
    for b in range(gate.shape[0]):
        for i in range(gate.shape[1]):
            out[b, i] = gate[b, i] * _sigmoid(gate[b, i]) * up[b, i]


@fast_jit
def correct(out: Floats, reads: Floats, delta: Floats, factor: float) -> None:
    """Adds factor · reads Δᵀ to out: [B, N], reads [B, R], Δ [N, R]."""
    for b in range(out.shape[0]):
        for n in range(out.shape[1]):
            total = _ZERO
            for r in range(reads.shape[1]):
                total += reads[b, r] * delta[n, r]
            out[b, n] += np.float32(factor) * total


@fast_jit
def _rotate(x: Floats, cos: Floats, sin: Floats, out: Floats) -> None:
    """Sets out to x turned by its position; all [D], halves paired."""
    half = x.size // 2
    for i in range(half):
        out[i] = x[i] * cos[i] - x[half + i] * sin[i]
        out[half + i] = x[half + i] * cos[half + i] + x[i] * sin[half + i]


@fast_jit
def _attend_one(query: Floats, keys: Floats, values: Floats, length: int, scores: Floats, out: Floats) -> None:
    """One head: query [D], keys and values [≥ length, D], scores [≥ length] for its own use, out [D]."""
    size = query.size
    highest = np.float32(-np.inf)
    for t in range(length):
        total = _ZERO
        for i in range(size):
            total += query[i] * keys[t, i]
        scores[t] = total
        highest = max(highest, total)
    total = _ZERO
    for t in range(length):
        scores[t] = _expm1(scores[t] - highest) + _ONE
        total += scores[t]
    for i in range(size):
        out[i] = _ZERO
    for t in range(length):
        share = scores[t] / total
        for i in range(size):
            out[i] += share * values[t, i]


@fast_jit
def attend(
    q: Floats,
    k: Floats,
    v: Floats,
    q_norm: Floats,
    k_norm: Floats,
    eps: float,
    cos: Floats,
    sin: Floats,
    keys: Floats,
    values: Floats,
    slots: Integers,
    lengths: Integers,
    scaling: float,
    out: Floats,
) -> None:
    """Puts each row's key and value behind those in its slot, and sets out to what its queries attend to.

    Args:
        q: [B, heads · D].
        k: [B, key heads · D]; each serves as many query heads in a row.
        v: like k.
        q_norm: weight [D] of the RMS norm of queries, head by head, or empty.
        k_norm: the same for keys.
        eps: of both.
        cos: [B, D] of each row's position.
        sin: likewise.
        keys: [slots, key heads, room, D], turned by their positions.
        values: likewise, not turned.
        slots: [B], each row's.
        lengths: [B], how many tokens are in it before this one.
        scaling: of the scores.
        out: [B, heads · D].
    """
    heads, size = keys.shape[1], keys.shape[3]
    group = q.shape[1] // size // heads
    scores = np.empty(keys.shape[2], np.float32)
    plain = np.empty(size, np.float32)
    query = np.empty(size, np.float32)
    for b in range(q.shape[0]):
        slot, length = slots[b], lengths[b]
        for h in range(heads):
            key, head = k[b, h * size : (h + 1) * size], keys[slot, h]
            if k_norm.size > 0:
                _normalize(key, k_norm, np.float32(eps), plain)
                _rotate(plain, cos[b], sin[b], head[length])
            else:
                _rotate(key, cos[b], sin[b], head[length])
            for i in range(size):
                values[slot, h, length, i] = v[b, h * size + i]
            for g in range(h * group, (h + 1) * group):
                raw = q[b, g * size : (g + 1) * size]
                if q_norm.size > 0:
                    _normalize(raw, q_norm, np.float32(eps), plain)
                    _rotate(plain, cos[b], sin[b], query)
                else:
                    _rotate(raw, cos[b], sin[b], query)
                for i in range(size):
                    query[i] *= np.float32(scaling)
                _attend_one(query, head, values[slot, h], length + 1, scores, out[b, g * size : (g + 1) * size])
