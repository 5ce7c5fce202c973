"""Finding the attention modules of a Hugging Face decoder, and hooking a memory into them.

Hooks stay for the model's life and do nothing unless a forward hands them a `MemoryPass`. The pass travels as a keyword
argument through the model's own forward, so two threads never share one, and gradient checkpointing, which replays a
layer with its keyword arguments, replays the memory too.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from deltamem_agents.config import Projection
from deltamem_agents.errors import AdapterError, UnsupportedArchitectureError
from deltamem_agents.layer import DeltaMemLayer, LayerOutput, LayerShape

PASS_KEY = "delta_mem_pass"
OUTPUT_NAMES = ("o_proj", "dense", "out_proj")


@dataclass(slots=True)
class MemoryPass:
    """What one forward hands to the hooks, and what they hand back."""

    state: Tensor
    """float32 [B, layers, N, r, r], before the forward."""
    write: Tensor | bool
    """Which tokens are written, bool [B, T], or one bool for all."""
    spans: Tensor | None
    """long [B, T], spans of tokens that make one write, or None for token writes."""
    needs_grad: bool
    """Whether gradients were on where the forward began."""
    carry: Tensor | None = None
    """[B, layers, N·r], what the forward before gave; None at the beginning of a sequence, and without key shift."""
    valid: Tensor | None = None
    """Which tokens are no padding, bool [B, T]; None: all."""
    gates: bool = False
    """Whether the read gates are handed back."""
    new: list[LayerOutput | None] = field(default_factory=list)
    """Per layer, what came of it."""


@dataclass(frozen=True, slots=True)
class AttentionSite:
    """One attention module that can carry a memory."""

    path: str
    """Module path inside the backbone, as published adapters name it."""
    layer: int
    """Decoder layer number."""
    module: nn.Module
    shape: LayerShape
    output_name: str

    @property
    def packed(self) -> bool:
        """True when one `qkv_proj` computes q, k and v together."""
        return hasattr(self.module, "qkv_proj")


def find_attention(backbone: nn.Module) -> dict[str, AttentionSite]:
    """All attention modules of the decoder, by module path, in order of depth.

    Raises:
        UnsupportedArchitectureError: names the module that the memory cannot serve, and why.
    """
    if getattr(getattr(backbone, "config", None), "is_encoder_decoder", False):
        raise UnsupportedArchitectureError(
            f"{type(backbone).__name__} is an encoder with a decoder: delta-mem needs a decoder-only model"
        )
    decoder: nn.Module = backbone.get_decoder() if isinstance(backbone, PreTrainedModel) else backbone  # type: ignore[no-untyped-call]
    prefix = next((f"{name}." if name else "" for name, m in backbone.named_modules() if m is decoder), "")
    sites: dict[str, AttentionSite] = {}
    passed_over = ""
    for name, module in decoder.named_modules():
        if not name.endswith(("attn", "attention", "self_attention")):
            continue
        path = prefix + name
        output_name = next((o for o in OUTPUT_NAMES if _is_linear(getattr(module, o, None))), None)
        if output_name is None:
            children = ", ".join(child for child, _ in module.named_children())
            passed_over = passed_over or (children and f"{path} ({type(module).__name__}) with {children}")
            continue
        shape = _shape(path, module, output_name)
        sites[path] = AttentionSite(path, int(getattr(module, "layer_idx", len(sites))), module, shape, output_name)
    if not sites:
        raise UnsupportedArchitectureError(
            f"{type(backbone).__name__} has no attention modules with linear q_proj, k_proj, v_proj (or qkv_proj) and "
            f"{' or '.join(OUTPUT_NAMES)}, but {passed_over or 'none at all'}: delta-mem cannot be attached "
            "to this kind of model"
        )
    return sites


def _is_linear(module: object) -> bool:
    return isinstance(module, nn.Module) and hasattr(module, "in_features") and hasattr(module, "out_features")


def _shape(path: str, module: nn.Module, output_name: str) -> LayerShape:
    output = getattr(module, output_name)
    if getattr(module, "is_kv_shared_layer", False):
        raise UnsupportedArchitectureError(f"{path} shares its keys and values with another layer: not supported")
    if _is_linear(getattr(module, "qkv_proj", None)):
        return _packed_shape(path, module, output)
    missing = [p for p in ("q_proj", "k_proj", "v_proj") if not _is_linear(getattr(module, p, None))]
    if missing:
        raise UnsupportedArchitectureError(
            f"{path} ({type(module).__name__}) has no linear {', '.join(missing)}: delta-mem corrects the outputs of "
            "plain q, k, v and o projections, and cannot be attached to this kind of attention"
        )
    q_proj, k_proj, v_proj = (getattr(module, p) for p in ("q_proj", "k_proj", "v_proj"))
    if q_proj.out_features != output.in_features:
        raise UnsupportedArchitectureError(
            f"{path}.q_proj has {q_proj.out_features} outputs but {output_name} takes {output.in_features}: a gated or "
            "otherwise unusual query projection, not supported"
        )
    outs = (p.out_features for p in (q_proj, k_proj, v_proj, output))
    return LayerShape(q_proj.in_features, *outs)


def _packed_shape(path: str, module: nn.Module, output: nn.Linear) -> LayerShape:
    """Of one linear module that puts out all of q, then all of k, then all of v, as Phi-3's does."""
    packed, config = cast("nn.Linear", module.qkv_proj), getattr(module, "config", None)
    head, heads, kv_heads = (
        int(getattr(owner, name, 0))
        for owner, name in ((module, "head_dim"), (config, "num_attention_heads"), (config, "num_key_value_heads"))
    )
    q, kv = heads * head, kv_heads * head
    if not kv or packed.out_features != q + 2 * kv or output.in_features != q:
        raise UnsupportedArchitectureError(
            f"{path}.qkv_proj ({type(module).__name__}) has {packed.out_features} outputs and the output projection "
            f"{output.in_features} inputs, expected {q} + 2·{kv} and {q} for {heads} query and {kv_heads} key heads of "
            f"{head}: an unknown packing, not supported"
        )
    return LayerShape(packed.in_features, q, kv, kv, output.out_features)


class _Reads(threading.local):
    """What the attention module now running on this thread has read."""

    value: Tensor | None = None


class AttachedLayer:
    """The hooks of one memory layer on one attention module."""

    def __init__(self, site: AttentionSite, layer: DeltaMemLayer, index: int) -> None:
        if any(isinstance(getattr(h, "__self__", None), AttachedLayer) for h in _pre_hooks(site.module)):
            raise AdapterError(f"{site.path} carries a memory already: detach() that model before attaching another")
        self.site, self.layer, self.index = site, layer, index
        self.reads = _Reads()
        module = site.module
        heads = layer.config.delta_heads
        self.handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, always_call=True),
        ]
        if "o" in heads:
            self.handles.append(getattr(module, site.output_name).register_forward_hook(self._correct_o))
        if site.packed and set(heads) - {"o"}:
            self.handles.append(module.qkv_proj.register_forward_hook(self._correct_packed))  # type: ignore[union-attr]
        elif not site.packed:
            hooks = {"q": self._correct_q, "k": self._correct_k, "v": self._correct_v}
            for projection in set(heads) - {"o"}:
                linear = getattr(module, f"{projection}_proj")
                self.handles.append(linear.register_forward_hook(hooks[projection]))

    def detach(self) -> None:
        """Removes the hooks."""
        for handle in self.handles:
            handle.remove()

    def _before(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        bound = kwargs.pop(PASS_KEY, None)
        self.reads.value = None
        if not isinstance(bound, MemoryPass):
            return None
        if bound.needs_grad and not torch.is_grad_enabled():
            raise AdapterError(
                f"{self.site.path} runs without gradients inside a forward that has them: reentrant gradient "
                "checkpointing would lose those of the memory, set use_reentrant=False"
            )
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        if not isinstance(hidden, Tensor):
            raise UnsupportedArchitectureError(f"{self.site.path} was called without hidden_states: not supported")
        device, write, carry = hidden.device, bound.write, bound.carry
        found = self.layer(
            hidden,
            bound.state[:, self.index].to(device),
            write=write.to(device) if isinstance(write, Tensor) else write,
            spans=None if bound.spans is None else bound.spans.to(device),
            carry=None if carry is None else carry[:, self.index].to(device),
            valid=None if bound.valid is None else bound.valid.to(device),
            gates=bound.gates,
        )
        self.reads.value, bound.new[self.index] = found.reads, found
        return args, kwargs

    def _after(self, module: nn.Module, args: object, output: object) -> None:
        self.reads.value = None

    def _correct_q(self, module: nn.Module, args: object, out: Tensor) -> Tensor:
        return self._corrected("q", out)

    def _correct_k(self, module: nn.Module, args: object, out: Tensor) -> Tensor:
        return self._corrected("k", out)

    def _correct_v(self, module: nn.Module, args: object, out: Tensor) -> Tensor:
        return self._corrected("v", out)

    def _correct_o(self, module: nn.Module, args: object, out: Tensor) -> Tensor:
        return self._corrected("o", out)

    def _corrected(self, projection: Projection, out: Tensor) -> Tensor:
        reads = self.reads.value
        if reads is None:
            return out
        return self.layer.correct(projection, out, reads)

    def _correct_packed(self, module: nn.Module, args: object, out: Tensor) -> Tensor:
        reads = self.reads.value
        if reads is None:
            return out
        shape = self.layer.shape
        packed: tuple[Projection, ...] = ("q", "k", "v")
        parts = [
            self.layer.correction(p, reads) if p in self.layer.delta else out.new_zeros(*out.shape[:-1], shape.out(p))
            for p in packed
        ]
        return out + torch.cat(parts, -1).to(out.dtype)


def _pre_hooks(module: nn.Module) -> list[object]:
    return list(module._forward_pre_hooks.values())


def attach(sites: Mapping[str, AttentionSite], layers: Mapping[str, DeltaMemLayer]) -> list[AttachedLayer]:
    """Hooks each layer into its attention module, all or none; states are indexed in the order of `layers`."""
    attached: list[AttachedLayer] = []
    try:
        for index, (path, layer) in enumerate(layers.items()):
            attached.append(AttachedLayer(sites[path], layer, index))
    except Exception:
        for done in attached:
            done.detach()
        raise
    return attached
