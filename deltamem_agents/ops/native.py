"""The recurrence as compiled CPU loops: float32, one thread, no autograd.

numba is imported at the first use, not before, and the loops are compiled then, once per machine: afterwards they come
from numba's on-disk cache. numba holds a lock meanwhile, so threads may race for the first call.
"""

from functools import cache

import torch
from torch import Tensor

from deltamem_agents.config import StateUpdateMode

MODES: dict[StateUpdateMode, int] = {"standard": 0, "lambda_outside": 1, "no_lambda": 2}  # as native_kernels has them
_EVERYWHERE = torch.empty(0, 0, dtype=torch.bool)
_NONE, _NO_MATCH = torch.empty(0), torch.empty(0, 0)


@cache
def native_available() -> bool:
    """Whether numba can be imported here (it lags behind new Python and numpy versions)."""
    try:
        import deltamem_agents.ops.native_kernels  # noqa: F401
    except ImportError:
        return False
    return True


def _require(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """The compiled loops check no bounds, so every argument is checked here."""
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.dtype != dtype or not tensor.is_cpu:
        raise TypeError(f"{name} is {tensor.dtype} on {tensor.device}, the native scan needs {dtype} on the CPU")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{name} requires a gradient, the native scan has none: use no_grad or chunked_delta_rule")


def native_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`naive_delta_rule` for float32 tensors on the CPU, without gradients; arguments, shapes and results are the same.

    Raises:
        ValueError: a shape isn't [B, T, N, r], or [B, N, r, r] for the state.
        TypeError: an argument isn't a float32 CPU tensor.
        RuntimeError: a gradient is asked for.
    """
    from deltamem_agents.ops.native_kernels import scan

    batch, tokens, heads, rank = q.shape
    per_token = {"q": q, "k": k, "v": v, "keep": keep, "erase": erase, "write": write}
    for name, tensor in per_token.items():
        _require(name, tensor, (batch, tokens, heads, rank))
    _require("state", state, (batch, heads, rank, rank))
    reads, new_state = q.new_empty(q.shape), state.new_empty(state.shape)
    scan(*[x.detach().contiguous().numpy() for x in (*per_token.values(), state, reads, new_state)])
    return reads, new_state


def native_gated_delta_rule(
    projected: Tensor,
    gate_bias: Tensor,
    state: Tensor,
    writable: Tensor | None,
    *,
    state_update_mode: StateUpdateMode,
    rankwise_gates: bool,
    normalize_qk: bool,
    gate_floor: float = 0.0,
    read_gate_bias: Tensor | None = None,
    read_gate_match: Tensor | None = None,
    key_shift: bool = False,
    carry: Tensor | None = None,
    valid: Tensor | None = None,
    writes: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All of a layer's memory after its one projection, in one call: normalisation, gates and scan, without gradients.

        q = l2(tanh(x_q))    k = l2(tanh(x_k + x_p of the token before))    v = x_v    (no l2 and tanh without
        β = floor(σ(x_β + b_β))     λ = σ(x_λ + b_λ), or 1 − β if there is no x_λ        `normalize_qk`)
        ρ = g ∘ S q                 g = floor(σ(x_g + b_g + U S q))       floor(z) = max(0, (z − c) / (1 − c))

    then the gated delta rule (arXiv:2605.12357, section 3) with (keep, erase, write) = (λ, β, β), (λ, λβ, β) or
    (1, β, β); where β is 0 under a floor, λ is 1. R = N·r; G is R with `rankwise_gates`, else N.

    Args:
        projected: [x_q (R) | x_g (N), with a read gate | x_p (R), with `key_shift` | x_k (R) | x_v (R) | x_β (G) | x_λ
            (G), if the keep gate is free]; [B, T, ·], float32. What follows x_p may be missing if `writes` is False.
        gate_bias: b_β, and b_λ after it if the keep gate is free; [G] or [2G], float32.
        state: S before the first token, [B, N, r, r], float32, rows by value, columns by key.
        writable: which tokens write, bool [B, T]; None means all. The others read, and leave S as it is.
        state_update_mode: "standard", "lambda_outside" or "no_lambda" (which ignores x_λ).
        rankwise_gates: one gate per row of S, or one per head.
        normalize_qk: whether q and k are squashed and scaled, head by head, to unit length (lengths
            under 1e-6 count as 1e-6).
        gate_floor: c, of β and g.
        read_gate_bias: b_g, [N], float32; None: reads pass whole.
        read_gate_match: U, [N, R], float32; None: the gate doesn't see what is read.
        key_shift: whether keys see the token before.
        carry: x_p of each row's last token before these, [B, R], float32; None: zeros.
        valid: which tokens are no padding, bool [B, T]; None: all. Padding is never the token before.
        writes: False only reads: the returned state is `state` itself.

    Returns:
        The reads ρ, [B, T, R], the state after the last token, [B, N, r, r], and with `key_shift` x_p of each row's
        last token that is no padding, [B, R].

    Raises:
        ValueError: shapes that don't fit each other.
        TypeError: an argument isn't on the CPU, or isn't float32 (bool for the masks).
        RuntimeError: a gradient is asked for.
    """
    from deltamem_agents.ops.native_kernels import fused

    batch, heads, rank, _ = state.shape
    tokens = projected.shape[1]
    width, gates = heads * rank, heads * rank if rankwise_gates else heads
    kinds = 2 if gate_bias.numel() == 2 * gates else 1
    read_width = width + (0 if read_gate_bias is None else heads) + (width if key_shift else 0)
    _require("state", state, (batch, heads, rank, rank))
    _require("gate_bias", gate_bias, (kinds * gates,))
    full = read_width + 2 * width + kinds * gates
    _require("projected", projected, (batch, tokens, full if writes else max(projected.shape[-1], read_width)))
    for name, mask in (("writable", writable), ("valid", valid)):
        if mask is not None:
            _require(name, mask, (batch, tokens), torch.bool)
    if read_gate_bias is not None:
        _require("read_gate_bias", read_gate_bias, (heads,))
    if read_gate_match is not None:
        _require("read_gate_match", read_gate_match, (heads, width))
    after = None
    if key_shift:
        if carry is not None:
            _require("carry", carry, (batch, width))
        after = state.new_zeros(batch, width)
        if carry is not None:
            after.copy_(carry)
    reads = state.new_empty(batch, tokens, heads, rank)
    start = state.detach().contiguous().numpy()
    new_state = torch.empty_like(state, memory_format=torch.contiguous_format) if writes else state
    fused(
        projected.detach().contiguous().numpy(),
        gate_bias.detach().contiguous().numpy().reshape(kinds, gates),
        (_NONE if read_gate_bias is None else read_gate_bias.detach().contiguous()).numpy(),
        (_NO_MATCH if read_gate_match is None else read_gate_match.detach().contiguous()).numpy(),
        start,
        (_EVERYWHERE if writable is None else writable.contiguous()).numpy(),
        (_EVERYWHERE if valid is None else valid.contiguous()).numpy(),
        MODES[state_update_mode],
        normalize_qk,
        gate_floor,
        writes,
        reads.numpy(),
        new_state.numpy() if writes else start,
        (_NO_MATCH if after is None else after).numpy(),
    )
    return reads.view(batch, tokens, width), new_state, after
