"""Compiled loops for x Wᵀ with few rows x, as decoding has them: W is read once, in float32 or as int8 with scales.

Sums are reassociated, so that inner loops become vector code. Importing this module imports numba.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Weights = NDArray[np.float32] | NDArray[np.int8]
_Function = TypeVar("_Function", bound=Callable[..., object])
_ZERO = np.float32(0)
BLOCK = 64
"""Rows of W that one thread takes at a time."""


def fast_jit(function: _Function, *, parallel: bool = False) -> _Function:
    """numba.njit with sums reassociated, and an on-disk cache, or none where no folder for it can be written."""

    def wrapped(cache: bool) -> _Function:
        fastmath = {"contract", "reassoc", "nsz", "arcp"}
        jit = numba.njit(cache=cache, nogil=True, error_model="numpy", fastmath=fastmath, parallel=parallel)
        return cast(_Function, jit(function))

    try:
        return wrapped(cache=True)
    except RuntimeError:  # "cannot cache function: no locator available"
        return wrapped(cache=False)


@fast_jit
def _one(x: Floats, row: Floats) -> np.float32:
    total = _ZERO
    for k in range(x.size):
        total += x[k] * row[k]
    return total


@fast_jit
def _eight(x: Floats, m: int, first: Floats, second: Floats, sums: Floats) -> None:
    """Four rows of x, from m on, times two rows of W: so many sums stay in registers."""
    x0, x1, x2, x3 = x[m], x[m + 1], x[m + 2], x[m + 3]
    a0, a1, a2, a3 = _ZERO, _ZERO, _ZERO, _ZERO
    b0, b1, b2, b3 = _ZERO, _ZERO, _ZERO, _ZERO
    for k in range(first.size):
        a, b = first[k], second[k]
        a0 += x0[k] * a
        a1 += x1[k] * a
        a2 += x2[k] * a
        a3 += x3[k] * a
        b0 += x0[k] * b
        b1 += x1[k] * b
        b2 += x2[k] * b
        b3 += x3[k] * b
    sums[0], sums[1], sums[2], sums[3] = a0, a1, a2, a3
    sums[4], sums[5], sums[6], sums[7] = b0, b1, b2, b3


@fast_jit
def _rows(x: Floats, weight: Weights, scale: Floats, begin: int, end: int, out: Floats) -> None:
    """Columns `begin` to `end` of out; weights pass through two rows of float32 where there are several rows of x."""
    m, size = x.shape
    if m == 1:
        for n in range(begin, end):
            total = _ZERO
            for k in range(size):
                total += x[0, k] * np.float32(weight[n, k])
            out[0, n] = total * scale[n] if scale.size > 0 else total
        return
    wide = np.empty((2, size), np.float32)
    sums = np.empty(8, np.float32)
    for n in range(begin, end, 2):
        pair = min(2, end - n)
        for i in range(pair):
            s = scale[n + i] if scale.size > 0 else np.float32(1)
            for k in range(size):
                wide[i, k] = np.float32(weight[n + i, k]) * s
        fours = m - m % 4 if pair == 2 else 0
        for r in range(0, fours, 4):
            _eight(x, r, wide[0], wide[1], sums)
            for i in range(4):
                out[r + i, n] = sums[i]
                out[r + i, n + 1] = sums[4 + i]
        for r in range(fours, m):
            for i in range(pair):
                out[r, n + i] = _one(x[r], wide[i])


@fast_jit
def product(x: Floats, weight: Weights, scale: Floats, out: Floats) -> None:
    """Sets out [M, N] to x [M, K] times (scale · weight [N, K])ᵀ; scale [N], or empty for ones.

    Every array is C-contiguous.
    """
    _rows(x, weight, scale, 0, weight.shape[0], out)


def _in_parallel(x: Floats, weight: Weights, scale: Floats, out: Floats) -> None:
    """`product`, by several threads."""
    count = weight.shape[0]
    for block in numba.prange((count + BLOCK - 1) // BLOCK):
        _rows(x, weight, scale, block * BLOCK, min(count, (block + 1) * BLOCK), out)


product_in_parallel = fast_jit(_in_parallel, parallel=True)


@fast_jit
def widen(weight: NDArray[np.int8], scale: Floats, out: Floats) -> None:
    """Sets out to scale · weight, [N, K] in float32."""
    for n in range(weight.shape[0]):
        for k in range(weight.shape[1]):
            out[n, k] = np.float32(weight[n, k]) * scale[n]
