"""The type that weights are computed in: what a checkpoint was saved in is not what every processor is fast at.

A CPU without instructions for bfloat16 multiplies matrices in half precision four to eight times slower than in
float32: in prompts, and where sessions decode together. One session alone decodes no slower in it.
"""

import warnings

import psutil
import torch
from transformers import PreTrainedModel

HALF = (torch.bfloat16, torch.float16)
SPARE = 1.1
"""How many times what float32 weights take more has to be free."""


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16: a GPU that doesn't emulate it, a CPU with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def widened(backbone: PreTrainedModel) -> PreTrainedModel:
    """The model in float32, in place, if it is in half precision on a CPU that has no instructions for bfloat16.

    Where memory doesn't suffice it stays as it is, with a warning.
    """
    weights = list(backbone.parameters())
    on_cpu = all(weight.device.type == "cpu" for weight in weights)
    if not on_cpu or backbone.dtype not in HALF or computes_bfloat16(torch.device("cpu")):
        return backbone
    more = sum(2 * weight.numel() for weight in weights if weight.dtype in HALF)
    free = psutil.virtual_memory().available
    if free < SPARE * more:
        saved = str(backbone.dtype).removeprefix("torch.")
        warnings.warn(
            f"this CPU has no instructions for {saved}, in which the model was saved: prompts are several times faster "
            f"in float32, which would take {more / 1e9:.1f} GB more, of {free / 1e9:.1f} GB that are free; the model "
            "stays as it is: take a smaller one, or a machine with more memory",
            stacklevel=3,
        )
        return backbone
    backbone.float()  # type: ignore[no-untyped-call]
    return backbone


def warn_if_quantised(backbone: PreTrainedModel) -> None:
    """Warns that an adapter was trained on other weights than these, if they are quantised."""
    if not getattr(backbone, "is_quantized", False):
        return
    settings = getattr(backbone.config, "quantization_config", None)
    kind = getattr(settings, "quant_method", None) or type(settings).__name__
    warnings.warn(
        f"the model is loaded quantised ({getattr(kind, 'value', kind)}), and the adapter that ships for it was "
        "trained and measured on weights that are not: it may recall less. Load it without quantization_config, or see "
        "what is recalled (deltamem evaluate recall)",
        stacklevel=3,
    )
