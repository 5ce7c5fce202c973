"""The recurrence in chunks: a triangular solve inside each chunk, a tiny sequential step between chunks.

Differentiable, on any device, without a compiler. Row i of S evolves alone, s_t = a_t s_{t−1} + u_t k_t with
u_t = w_t v_t − e_t ⟨s_{t−1}, k_t⟩, so inside a chunk all u_t solve one unit-triangular system that is linear in the
state at the chunk's start.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _chunks(x: Tensor, size: int, pad: float) -> Tensor:
    """[B, T, N, r] -> [B·N, chunks, size, r], the tail filled with `pad`."""
    x = x.transpose(1, 2).flatten(0, 1)
    missing = -x.shape[1] % size
    if missing:
        x = F.pad(x, (0, 0, 0, missing), value=pad)
    return x.reshape(x.shape[0], x.shape[1] // size, size, x.shape[2])


def _decays(keep: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Products of keep over stretches of a chunk, from float64 logarithms: ratios stay exact where keep is almost 0.

    keep [X, n, C, r] -> between [X, n, r, C, C] (∏ over j < l < t), before [X, n, r, C] (∏ over l < t),
    after [X, n, r, C] (∏ over l > t), whole [X, n, r].
    """
    log = keep.transpose(-1, -2).double().clamp_min(1e-30).log()
    inclusive = log.cumsum(-1)
    exclusive = inclusive - log
    total = inclusive[..., -1]
    stretch = (exclusive[..., :, None] - inclusive[..., None, :]).clamp(max=0.0)
    dtype = keep.dtype
    between = stretch.to(dtype).exp().tril(-1)
    return between, exclusive.to(dtype).exp(), (total[..., None] - inclusive).to(dtype).exp(), total.to(dtype).exp()


def chunked_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor,
    *,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """`naive_delta_rule` in T / chunk_size sequential steps; arguments, shapes and results are the same."""
    tokens = q.shape[1]
    if tokens == 0:
        return q.new_zeros(q.shape), state
    batch, heads = state.shape[:2]
    size = min(chunk_size, tokens)
    q, k, v, erase, write = (_chunks(x, size, 0.0) for x in (q, k, v, erase, write))
    between, before, after, whole = _decays(_chunks(keep, size, 1.0))

    gram = (k @ k.mT).unsqueeze(2)  # [X, n, 1, C, C]
    erase, source = erase.mT, (write * v).mT  # [X, n, r, C]
    system = erase.unsqueeze(-1) * between * gram  # strictly lower triangular
    from_start = -(erase * before).unsqueeze(-1) * k.unsqueeze(2)  # [X, n, r, C, r]
    # (I + system) u = source + from_start · s_0, solved at once for the constant and for each column of s_0
    solved = torch.linalg.solve_triangular(
        system, torch.cat([source.unsqueeze(-1), from_start], -1), upper=False, unitriangular=True
    )
    step = (after.unsqueeze(-1) * k.unsqueeze(2)).mT @ solved  # [X, n, r, r, 1 + r]
    shift = step[..., 0]  # [X, n, r, r]
    transition = step[..., 1:] + whole[..., None, None] * torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)

    current = state.flatten(0, 1)  # [X, r, r]
    starts = []
    for n in range(q.shape[1]):
        starts.append(current)
        current = (transition[:, n] @ current.unsqueeze(-1)).squeeze(-1) + shift[:, n]
    start = torch.stack(starts, 1)  # [X, n, r, r]

    updates = solved[..., 0] + (solved[..., 1:] @ start.unsqueeze(-1)).squeeze(-1)  # u, [X, n, r, C]
    inside = between * (q @ k.mT).unsqueeze(2)
    reads = before * (start @ q.mT) + (inside @ updates.unsqueeze(-1)).squeeze(-1)
    reads = reads.mT.flatten(1, 2)[:, :tokens]  # [X, T, r]
    reads = reads.reshape(batch, heads, *reads.shape[1:])
    return reads.transpose(1, 2), current.reshape(state.shape)
