"""What the machine at hand trains fastest with."""

import ctypes
import sys

import torch

from deltamem_agents.backbone.dtypes import computes_bfloat16

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""glibc's names for mallopt."""


def training_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of a recipe's `dtype`: "auto" is bfloat16 where the device computes in it, else float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    return torch.bfloat16 if computes_bfloat16(device) else torch.float32


def keep_freed_memory() -> bool:
    """Has this process keep large blocks that are freed, not hand them back to the system; whether that took effect.

    A training step frees and allocates the same large tensors again and again. glibc maps such blocks afresh each
    time, and up to half of a step on a CPU is page faults.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28))
    return all(mallopt(option, value) == 1 for option, value in options)
