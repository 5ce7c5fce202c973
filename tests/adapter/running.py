"""Models with a memory, run and compared."""

import pytest
import torch
from torch import Tensor, nn

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.state import MemoryState
from tests.builders import FAMILIES, MECHANISMS, tokens

LENGTH = 13
TOLERANCE = 1e-4
family = pytest.mark.parametrize("family", FAMILIES)
mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)


def start(model: DeltaMemModel, rows: int = 1) -> MemoryState:
    """A memory with something in it."""
    with torch.no_grad():
        return model(tokens(rows, 9, seed=7), use_cache=False).state


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=TOLERANCE)


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks")
    kinds += ("_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds)
