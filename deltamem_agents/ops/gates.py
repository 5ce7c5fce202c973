"""Gates that close: a sigmoid never reaches 0, and thousands of small leaks are a memory's wear and its harm."""

import torch
from torch import Tensor


def floored(gate: Tensor, floor: float) -> Tensor:
    """max(0, (z − c) / (1 − c)) of gates z in [0, 1]; `floor` c = 0 leaves them as they are.

    Where gradients are on, the value is the same and the gradient is that of z (straight through), so that a closed
    gate can open again.
    """
    if not floor:
        return gate
    closed = ((gate - floor) / (1.0 - floor)).clamp_min(0.0)
    return gate + (closed - gate).detach() if gate.requires_grad and torch.is_grad_enabled() else closed
