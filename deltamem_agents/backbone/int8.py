"""Weights as int8 on the CPU: a quarter of the bytes that a decoded token waits for.

Each row of a matrix is int8 times a float32 scale; what is multiplied with it stays float32, and so do norms, biases
and the memory. torch's own product of this kind is slower than float32 on processors without AVX-512, and torchao's no
faster: the compiled loops of `ops.products` serve instead.
"""

import warnings
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from deltamem_agents.ops import native_available
from deltamem_agents.ops.products import int8_linear, quantize_rows

Weights = Literal["full", "int8"]
"""How a backbone's weights are kept: as loaded, or as int8 rows with scales, which decode faster on a CPU."""


class Int8Linear(nn.Module):
    """A linear layer whose weights are int8 rows with scales; it computes in float32."""

    weight: Tensor
    """int8 [out_features, in_features]."""
    scale: Tensor
    """float32 [out_features]."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] in any float dtype -> [..., out_features] in the same."""
        if torch.is_grad_enabled() and x.requires_grad:
            wide = self.weight.float() * self.scale.unsqueeze(1)
            return F.linear(x.float(), wide, cast("Tensor | None", self.bias)).to(x.dtype)
        out = int8_linear(x.float().reshape(-1, self.in_features), self.weight, self.scale)
        if self.bias is not None:
            out += cast("Tensor", self.bias)
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        """For printing the model."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Embedding(nn.Module):
    """An embedding that shares int8 rows with the output layer."""

    def __init__(self, linear: Int8Linear) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = linear.out_features, linear.in_features
        self.register_buffer("weight", linear.weight)
        self.register_buffer("scale", linear.scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Long [...] -> float32 [..., embedding_dim]."""
        scale = cast("Tensor", self.scale)[ids].unsqueeze(-1)
        return F.embedding(ids, cast("Tensor", self.weight)).float() * scale


def quantized(backbone: PreTrainedModel) -> PreTrainedModel:
    """The model with all linear layers as int8, in place, and with it an embedding that is the output layer's.

    Where that can't be, it stays as it is, with a warning.
    """
    reason = _obstacle(backbone)
    if reason is not None:
        warnings.warn(
            f'weights="int8" is not used: {reason}; the model computes in {backbone.dtype} as without it',
            stacklevel=3,
        )
        return backbone
    output = backbone.get_output_embeddings()  # type: ignore[no-untyped-call]
    embedding = backbone.get_input_embeddings()
    tied = output is not None and getattr(output, "weight", None) is getattr(embedding, "weight", ())
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                narrow = Int8Linear(*quantize_rows(child.weight), child.bias)
                setattr(parent, name, narrow)
                if child is output and tied and type(embedding) is nn.Embedding:
                    backbone.set_input_embeddings(Int8Embedding(narrow))
    backbone.float()  # type: ignore[no-untyped-call]
    for kept in (*backbone.parameters(), *backbone.buffers()):
        if kept.dtype != torch.int8:
            kept.data = kept.data.clone()  # a tensor out of the checkpoint's file keeps all of it mapped
    return backbone


def kind_of_weights(backbone: PreTrainedModel) -> str:
    """What the model computes in, and whether its weights are int8, in words."""
    narrow = any(isinstance(module, Int8Linear) for module in backbone.modules())
    return f"{backbone.dtype}, int8 weights" if narrow else str(backbone.dtype)


def _obstacle(backbone: PreTrainedModel) -> str | None:
    """Why this model's weights can't be int8, and what to do; None where they can."""
    devices = {weight.device.type for weight in backbone.parameters()}
    if devices != {"cpu"}:
        return f"it is for CPUs, and the model is on {', '.join(sorted(devices))}: load it with device=\"cpu\""
    if getattr(backbone, "is_quantized", False):
        return "the model's weights are quantised already: leave the option out"
    if not native_available():
        return "numba cannot be imported here, which compiles its loops: install numba"
    return None
