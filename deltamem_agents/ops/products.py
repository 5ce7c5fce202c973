"""x Wᵀ for few rows x, by compiled loops: faster than the matrix products of libraries where W is read only once."""

import threading
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from deltamem_agents.ops.product_kernels import Floats, Weights

FEW_ROWS = 32
"""Up to so many rows the compiled loops serve; above, a library's product is faster, even if int8 is widened first."""
NO_SCALE = np.empty(0, np.float32)
SMALL = 1 << 17
"""Weights with fewer elements are read faster by one thread than they are shared out."""
BLOCK = 1 << 20
"""Weights that are widened or rounded at once."""
_one_at_a_time = threading.Lock()  # not every threading layer of numba can be entered twice


@cache
def _kernels() -> ModuleType:
    """The loops; numba is imported with them, at the first use."""
    from deltamem_agents.ops import product_kernels

    return product_kernels


def multiply(x: "Floats", weight: "Weights", scale: "Floats", out: "Floats") -> None:
    """Sets out to x (scale · weight)ᵀ, on as many threads as torch uses; for arrays that are known to fit.

    Args:
        x: float32 [M, K], with few rows.
        weight: float32 or int8 [N, K].
        scale: float32 [N], or `NO_SCALE`.
        out: float32 [M, N].
    """
    kernels, threads = _kernels(), torch.get_num_threads()
    if threads == 1 or weight.size < SMALL:
        kernels.product(x, weight, scale, out)
        return
    import numba

    with _one_at_a_time:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        kernels.product_in_parallel(x, weight, scale, out)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row as int8 times a scale, rounded to nearest: [N, K] -> int8 [N, K], float32 [N].

    scale = max |row| / 127, so no weight is off by more than half of that.
    """
    narrow, scale = torch.empty(weight.shape, dtype=torch.int8), torch.empty(weight.shape[0])
    rows = max(1, BLOCK // weight.shape[1])  # at once: a large matrix is never there a second time
    for begin in range(0, len(scale), rows):
        wide = weight.detach()[begin : begin + rows].float()
        part = scale[begin : begin + rows]
        part.copy_(wide.abs().amax(1) / 127).clamp_(min=torch.finfo(torch.float32).tiny)
        narrow[begin : begin + rows] = (wide / part.unsqueeze(1)).round_().to(torch.int8)
    return narrow, scale


def int8_linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Gives x (scale · weight)ᵀ on the CPU, without gradients: float32 [M, N].

    Few rows go through loops that read the weights as they are; for more, blocks of weights are widened and multiplied
    by torch.

    Args:
        x: float32 [M, K].
        weight: int8 [N, K].
        scale: float32 [N].

    Raises:
        ValueError: shapes that don't fit each other.
        TypeError: other types, or tensors that aren't on the CPU.
    """
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or scale.shape != weight.shape[:1]:
        found = f"{list(x.shape)}, {list(weight.shape)} and {list(scale.shape)}"
        raise ValueError(f"x, weight and scale have shapes {found}, expected [M, K], [N, K] and [N]")
    if (x.dtype, weight.dtype, scale.dtype) != (torch.float32, torch.int8, torch.float32) or not x.is_cpu:
        found = f"{x.dtype}, {weight.dtype} and {scale.dtype} on {x.device}"
        raise TypeError(f"x, weight and scale are {found}, expected float32, int8 and float32 on the CPU")
    out = torch.empty(x.shape[0], weight.shape[0])
    arrays: tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.float32]] = (
        x.detach().contiguous().numpy(),
        weight.contiguous().numpy(),
        scale.contiguous().numpy(),
    )
    if x.shape[0] <= FEW_ROWS:
        multiply(*arrays, out.numpy())
    else:
        _by_blocks(x.detach(), arrays[1], arrays[2], out)
    return out


def _by_blocks(x: torch.Tensor, weight: "NDArray[np.int8]", scale: "Floats", out: torch.Tensor) -> None:
    """Widens rows that fit into a processor's cache, multiplies them, and takes the same memory for the next ones."""
    from deltamem_agents.ops.product_kernels import widen

    count, size = weight.shape
    rows = min(count, max(1, BLOCK // size))
    wide = torch.empty(rows, size)
    for begin in range(0, count, rows):
        end = min(count, begin + rows)
        part = wide[: end - begin]
        widen(weight[begin:end], scale[begin:end], part.numpy())
        torch.mm(x, part.t(), out=out[:, begin:end])
