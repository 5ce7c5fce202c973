"""The recurrence as it is written in the paper, a token at a time: the reference every other path is tested against."""

import torch
from torch import Tensor


def naive_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Gated delta rule, token by token (arXiv:2605.12357, section 3).

        ρ_t = S_{t−1} q_t
        S_t = diag(keep_t) S_{t−1} − diag(erase_t) (S_{t−1} k_t) k_tᵀ + diag(write_t) v_t k_tᵀ

    Args:
        q: memory queries, [B, T, N, r].
        k: memory keys, [B, T, N, r].
        v: memory values, [B, T, N, r].
        keep: share of each row of S that is kept, [B, T, N, r], in [0, 1].
        erase: strength of the erasure along k, [B, T, N, r].
        write: strength of the write, [B, T, N, r]. A token with keep 1, erase 0 and write 0 leaves S alone.
        state: S before the first token, [B, N, r, r], rows by value, columns by key.

    Returns:
        The reads ρ, [B, T, N, r], and the state after the last token, [B, N, r, r]. A token never reads its own write.
    """
    reads = []
    for t in range(q.shape[1]):
        reads.append((state @ q[:, t].unsqueeze(-1)).squeeze(-1))
        recalled = (state @ k[:, t].unsqueeze(-1)).squeeze(-1)  # [B, N, r], what S holds under k_t
        update = write[:, t] * v[:, t] - erase[:, t] * recalled
        state = keep[:, t].unsqueeze(-1) * state + update.unsqueeze(-1) * k[:, t].unsqueeze(-2)
    return (torch.stack(reads, 1) if reads else q.new_zeros(q.shape)), state
