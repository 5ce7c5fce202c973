"""The gated delta rule: one meaning, several speeds."""

import torch
from torch import Tensor

from deltamem_agents.ops.chunked import chunked_delta_rule
from deltamem_agents.ops.gates import floored
from deltamem_agents.ops.naive import naive_delta_rule
from deltamem_agents.ops.native import native_available, native_delta_rule, native_gated_delta_rule

__all__ = [
    "chunked_delta_rule",
    "delta_rule",
    "differentiable_delta_rule",
    "floored",
    "naive_delta_rule",
    "native_available",
    "native_delta_rule",
    "native_gated_delta_rule",
    "runs_native",
]


def runs_native(*tensors: Tensor) -> bool:
    """Whether the compiled CPU loops can serve these tensors: float32, on the CPU, outside of torch.compile."""
    return (
        not torch.compiler.is_compiling()
        and all(x.dtype == torch.float32 and x.is_cpu for x in tensors)
        and native_available()
    )


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`naive_delta_rule`, by the fastest path that can do it: arguments, shapes and results are the same.

    Compiled loops for float32 on the CPU, with gradients where they are needed; else one plain step for a single token,
    else chunks.
    """
    tensors = (q, k, v, keep, erase, write, state)
    if runs_native(*tensors):
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return differentiable_delta_rule(*tensors)
        return native_delta_rule(*tensors)
    return naive_delta_rule(*tensors) if q.shape[1] == 1 else chunked_delta_rule(*tensors)


def differentiable_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, erase: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`naive_delta_rule` compiled, with gradients; float32 on the CPU. Arguments, shapes and results are the same."""
    from deltamem_agents.ops.differentiable import DifferentiableDeltaRule

    if q.shape[1] == 0:
        return q.new_zeros(q.shape), state
    reads, new_state = DifferentiableDeltaRule.apply(q, k, v, keep, erase, write, state)  # type: ignore[no-untyped-call]
    return reads, new_state
