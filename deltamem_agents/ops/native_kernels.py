"""The two compiled loops behind `native.py`. Importing this module imports numba; compiling waits for the first call.

Both keep a transposed copy of each state, columns of S contiguous, so that every inner loop runs over the rows of S,
which evolve independently: no reduction has to be reordered, and results don't depend on the machine's vector width.
Only contraction to fused multiply-adds is allowed of the fast-math liberties: NaN and infinity keep their meaning.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
_Function = TypeVar("_Function", bound=Callable[..., object])

LAMBDA_OUTSIDE, NO_LAMBDA = 1, 2  # values of `mode`; any other is "standard"

_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(0.693359375)  # few bits: n · _LN2_HIGH is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_ROUND = np.float32(12582912.0)  # 1.5 · 2^23: adding it leaves round(x) in the low bits of the mantissa
_LIMIT = np.float32(87.0)  # e^87 is still finite, and 2^n a normal number
_C2, _C3, _C4 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
_C5, _C6, _C7 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)
_BLOCK = 64
_ZERO, _ONE, _TWO, _EPS = np.float32(0), np.float32(1), np.float32(2), np.float32(1e-6)


def _jit(function: _Function) -> _Function:
    """numba.njit with an on-disk cache, or without one where no folder for it can be written."""

    def wrapped(cache: bool) -> _Function:
        jit = numba.njit(cache=cache, nogil=True, error_model="numpy", fastmath={"contract"})
        return cast(_Function, jit(function))

    try:
        return wrapped(cache=True)
    except RuntimeError:  # "cannot cache function: no locator available"
        return wrapped(cache=False)


@_jit
def _expm1(x: np.float32) -> np.float32:
    """e^x − 1 to about 2 ulp, without branches or calls, so that loops over it become vector code. NaN stays NaN."""
    x = _LIMIT if x > _LIMIT else x
    x = -_LIMIT if x < -_LIMIT else x
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    f = x - n * _LN2_HIGH
    f = f - n * _LN2_LOW
    small = f + f * f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * (_C6 + f * _C7)))))
    power = np.int32((np.float32(shifted).view(np.int32) << 23) + 0x3F800000).view(np.float32)  # 2^n
    return power * small + (power - _ONE)


@_jit
def _sigmoid(x: np.float32) -> np.float32:
    return _ONE / (_TWO + _expm1(-x))


@_jit
def _tanh(x: np.float32) -> np.float32:
    m = _expm1(x + x)
    return m / (m + _TWO)  # exact for small x too, where 1 − 2 / (e^2x + 1) cancels: l2 blows that up


@_jit
def _transpose(source: Floats, target: Floats) -> None:
    """target[n] = source[n]ᵀ, both [N, r, r]. Spelt out: numba takes seconds to compile an array assignment."""
    for h in range(source.shape[0]):
        for i in range(source.shape[1]):
            for j in range(source.shape[2]):
                target[h, j, i] = source[h, i, j]


@_jit
def _advance(
    q: Floats,
    k: Floats,
    v: Floats,
    keep: Floats,
    erase: Floats,
    write: Floats,
    columns: Floats,
    reads: Floats,
    tokens: int,
    writes: bool,
) -> None:
    """`tokens` steps of one sequence: [≥ tokens, N, r] each; `columns` is Sᵀ per head, [N, r, r], changed in place."""
    heads, rank = q.shape[1:]
    read = np.empty(rank, np.float32)
    update = np.empty(rank, np.float32)
    for h in range(heads):
        for t in range(tokens):
            for i in range(rank):
                read[i] = _ZERO
                update[i] = _ZERO
            for j in range(rank):
                for i in range(rank):
                    read[i] += columns[h, j, i] * q[t, h, j]
            for i in range(rank):
                reads[t, h, i] = read[i]
            if not writes:
                continue
            for j in range(rank):
                for i in range(rank):
                    update[i] += columns[h, j, i] * k[t, h, j]
            for i in range(rank):
                update[i] = write[t, h, i] * v[t, h, i] - erase[t, h, i] * update[i]
            for j in range(rank):
                for i in range(rank):
                    columns[h, j, i] = keep[t, h, i] * columns[h, j, i] + update[i] * k[t, h, j]


@_jit
def scan(
    q: Floats,
    k: Floats,
    v: Floats,
    keep: Floats,
    erase: Floats,
    write: Floats,
    state: Floats,
    reads: Floats,
    new_state: Floats,
) -> None:
    """`naive_delta_rule` into `reads` [B, T, N, r] and `new_state` [B, N, r, r]; every array C-contiguous."""
    columns = np.empty(state.shape[1:], np.float32)
    for b in range(state.shape[0]):
        _transpose(state[b], columns)
        _advance(q[b], k[b], v[b], keep[b], erase[b], write[b], columns, reads[b], q.shape[1], True)
        _transpose(columns, new_state[b])


@_jit
def _copy(x: Floats, out: Floats) -> None:
    for i in range(out.size):
        out[i] = x[i]


@_jit
def _direction(x: Floats, rank: int, normalize: bool, out: Floats) -> None:
    """Sets out to l2(tanh(x)) per head of `rank` numbers, or to x itself; both [R].

    Lengths under 1e-6 count as 1e-6.
    """
    if not normalize:
        _copy(x, out)
        return
    for i in range(out.size):
        out[i] = _tanh(x[i])
    for h in range(out.size // rank):
        head = out[h * rank : (h + 1) * rank]
        total = _ZERO
        for i in range(rank):
            total += head[i] * head[i]
        length = np.sqrt(total)
        scale = _ONE / (_EPS if length < _EPS else length)
        for i in range(rank):
            head[i] *= scale


@_jit
def _spread_sigmoid(logits: Floats, bias: Floats, out: Floats) -> None:
    """Sets out, [R], to σ(logits + bias), where logits and bias hold one number per row or one per head."""
    for i in range(bias.size):
        out[i] = _sigmoid(logits[i] + bias[i])
    rank = out.size // bias.size
    if rank > 1:
        for h in range(bias.size - 1, -1, -1):  # from the end, so that no gate is overwritten before it is spread
            gate = out[h]
            for i in range(h * rank, (h + 1) * rank):
                out[i] = gate


@_jit
def _close(gates: Floats, floor: np.float32) -> None:
    """max(0, (z − c) / (1 − c)) of each gate, in place; NaN stays NaN."""
    for i in range(gates.size):
        gates[i] = _ZERO if gates[i] < floor else (gates[i] - floor) / (_ONE - floor)


@_jit
def _strengths(
    logits: Floats, bias: Floats, floor: np.float32, mode: int, keep: Floats, erase: Floats, write: Floats
) -> None:
    """keep, erase and write, [R], of one token from its gates: β, then λ if `bias` [1 or 2, G] has two rows."""
    kinds, count = bias.shape
    _spread_sigmoid(logits[:count], bias[0], write)
    if floor > _ZERO:
        _close(write, floor)
    if kinds == 2:
        _spread_sigmoid(logits[count:], bias[1], keep)
        if floor > _ZERO:
            for i in range(keep.size):
                if write[i] <= _ZERO:
                    keep[i] = _ONE
    else:
        for i in range(keep.size):
            keep[i] = _ONE - write[i]
    for i in range(keep.size):
        erase[i] = keep[i] * write[i] if mode == LAMBDA_OUTSIDE else write[i]
    if mode == NO_LAMBDA:
        for i in range(keep.size):
            keep[i] = _ONE


@_jit
def _gate_reads(logits: Floats, bias: Floats, match: Floats, floor: np.float32, reads: Floats, gates: Floats) -> None:
    """Multiplies one token's reads, [N, r], by their gates: logits and bias [N]; match [N, R], or empty."""
    heads, rank = reads.shape
    for h in range(heads):
        logit = logits[h] + bias[h]
        if match.size > 0:
            for i in range(heads):
                for j in range(rank):
                    logit += match[h, i * rank + j] * reads[i, j]
        gates[h] = _sigmoid(logit)
    if floor > _ZERO:
        _close(gates, floor)
    for h in range(heads):
        for j in range(rank):
            reads[h, j] *= gates[h]


@_jit
def fused(
    projected: Floats,
    bias: Floats,
    read_bias: Floats,
    match: Floats,
    state: Floats,
    writable: Bools,
    valid: Bools,
    mode: int,
    normalize: bool,
    gate_floor: float,
    writes: bool,
    reads: Floats,
    new_state: Floats,
    carry: Floats,
) -> None:
    """`native_gated_delta_rule` into `reads` [B, T, N, r] and, if `writes`, `new_state`; every array C-contiguous.

    `bias` is [1 or 2, G]. An empty mask stands for one that is true everywhere, an empty `read_bias` for no read gate,
    an empty `carry` for no key shift; else `carry`, [B, R], is changed in place. Works in short blocks of tokens that
    stay in cache.
    """
    batch, tokens, heads, rank = reads.shape
    width = heads * rank
    floor = np.float32(gate_floor)
    shifts = carry.size > 0
    shift_at = width + read_bias.size
    key_at = shift_at + (width if shifts else 0)
    size = min(tokens, _BLOCK)
    block = (size, heads, rank)
    columns = np.empty((heads, rank, rank), np.float32)
    q = np.empty((size, width), np.float32)
    k = np.empty((size, width), np.float32)
    v = np.empty((size, width), np.float32)
    keep = np.empty((size, width), np.float32)
    erase = np.empty((size, width), np.float32)
    write = np.empty((size, width), np.float32)
    key = np.empty(width, np.float32)
    gates = np.empty(heads, np.float32)
    for b in range(batch):
        _transpose(state[b], columns)
        for first in range(0, tokens, _BLOCK):
            count = min(_BLOCK, tokens - first)
            for row in range(count):
                t = first + row
                token = projected[b, t]
                _direction(token[:width], rank, normalize, q[row])
                if writes:
                    if writable.size == 0 or writable[b, t]:
                        _copy(token[key_at : key_at + width], key)
                        if shifts:
                            for i in range(width):
                                key[i] += carry[b, i]
                        _direction(key, rank, normalize, k[row])
                        _copy(token[key_at + width : key_at + 2 * width], v[row])
                        _strengths(token[key_at + 2 * width :], bias, floor, mode, keep[row], erase[row], write[row])
                    else:
                        for i in range(width):
                            k[row, i] = _ZERO
                            v[row, i] = _ZERO
                            keep[row, i] = _ONE
                            erase[row, i] = _ZERO
                            write[row, i] = _ZERO
                if shifts and (valid.size == 0 or valid[b, t]):
                    _copy(token[shift_at : shift_at + width], carry[b])
            _advance(
                q.reshape(block),
                k.reshape(block),
                v.reshape(block),
                keep.reshape(block),
                erase.reshape(block),
                write.reshape(block),
                columns,
                reads[b, first : first + count],
                count,
                writes,
            )
            if read_bias.size > 0:
                for row in range(count):
                    t = first + row
                    _gate_reads(projected[b, t, width:], read_bias, match, floor, reads[b, t], gates)
        if writes:
            _transpose(columns, new_state[b])
