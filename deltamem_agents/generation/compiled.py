"""One decoded token a row by compiled loops, for plain decoders in float32 or int8 on the CPU, memory included.

What transformers spends between its matrix products, on a small model as long as on the products, is left out: a layer
is a dozen calls of loops compiled once a machine, on buffers that stay. Which model can be served is decided by looking
at its modules; any other, and one that somebody else has hooked, is decoded by its own forward.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.backbone.int8 import Int8Embedding, Int8Linear
from deltamem_agents.layer import DeltaMemLayer
from deltamem_agents.ops import native_available
from deltamem_agents.ops.native import MODES
from deltamem_agents.ops.products import NO_SCALE, multiply

if TYPE_CHECKING:
    from deltamem_agents.ops.product_kernels import Floats, Weights

log = logging.getLogger(__name__)
SERVED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Of transformers: RMS norms, rotary positions, a gated MLP, and nothing between them."""
TURNED = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles depend on the position alone."""
_NO_MATCH = np.empty((0, 0), np.float32)
_EVERYWHERE = np.empty((0, 0), np.bool_)


@dataclass(frozen=True, slots=True)
class Product:
    """A linear layer, by its arrays."""

    weight: "Weights"
    scale: "Floats"
    bias: "Floats | None"

    @classmethod
    def of(cls, module: nn.Module) -> "Product":
        """The arrays of a linear layer, as it has them."""
        linear = cast("nn.Linear | Int8Linear", module)
        scale = _array(linear.scale) if isinstance(linear, Int8Linear) else NO_SCALE
        bias = cast("Tensor | None", linear.bias)
        return cls(_array(linear.weight), scale, None if bias is None else _array(bias))

    def __call__(self, x: "Floats", out: "Floats") -> None:
        """Sets out [B, out features] from x [B, in features]."""
        multiply(x, self.weight, self.scale, out)
        if self.bias is not None:
            np.add(out, self.bias, out)


@dataclass(frozen=True, slots=True)
class Memory:
    """A layer's memory, by its arrays."""

    index: int
    """Which of the state's layers it is."""
    in_proj: "Floats"
    read_rows: int
    """So many of its rows serve tokens that are only read."""
    gates: tuple["Floats", "Floats", "Floats"]
    """The biases of the write gates [kinds, G], and those of the read gates and their match, or empty."""
    deltas: dict[str, "Floats"]

    @classmethod
    def of(cls, layer: DeltaMemLayer, index: int) -> "Memory":
        """The arrays of a layer, as it has them."""
        config = layer.config
        bias = _array(layer.gate_bias).reshape(-1, config.gates)
        read = _array(layer.read_gate_bias) if config.read_gate != "off" else NO_SCALE
        match = _array(layer.read_gate_match) if config.read_gate == "match" else _NO_MATCH
        deltas = {name: _array(delta) for name, delta in layer.delta.items()}
        return cls(index, _array(layer.in_proj), layer.block["k"].start, (bias, read, match), deltas)


@dataclass(frozen=True, slots=True)
class Layer:
    """A decoder layer."""

    norms: tuple["Floats", "Floats"]
    """Before attention, and before the MLP."""
    projections: dict[str, Product]
    """q, k, v, o, gate, up and down."""
    head_norms: tuple["Floats", "Floats"]
    """Of queries and keys, or empty."""
    scaling: float
    memory: Memory | None


@dataclass(slots=True)
class Rows:
    """What a step needs of the rows that it advances, and their buffers."""

    slots: NDArray[np.int64]
    """Which slot of `cache` is each row's, [B]."""
    lengths: NDArray[np.int64]
    """How many tokens are in it, [B]."""
    cache: list[tuple["Floats", "Floats"]]
    """Keys and values of each layer, [slots, heads, room, D]."""
    state: list["Floats"]
    """Of each memory, [B, N, r, r]; changed in place."""
    carry: list["Floats"]
    """Of each memory, [B, N·r], or empty; changed in place."""
    buffers: dict[tuple[str, int], "Floats"] = field(default_factory=dict)

    def buffer(self, name: str, size: int) -> "Floats":
        """Memory [B, size] that stays."""
        if (name, size) not in self.buffers:
            self.buffers[name, size] = np.empty((len(self.slots), size), np.float32)
        return self.buffers[name, size]


class CompiledStep:
    """A model's step; valid as long as its weights stay where they are.

    Args:
        model: one that `obstacle` finds nothing against.
    """

    def __init__(self, model: DeltaMemModel) -> None:
        backbone = cast("Any", model.backbone)  # the models of `SERVED` are alike
        decoder, self.config = backbone.model, model.adapter.config
        self.eps = float(backbone.config.rms_norm_eps)
        self.places = _places(model)
        memories = {id(a.site.module): Memory.of(a.layer, a.index) for a in model._attached}
        self.layers = [_layer(layer, memories.get(id(layer.self_attn))) for layer in decoder.layers]
        self.last_norm, self.head = _array(decoder.norm.weight), Product.of(backbone.lm_head)
        self.rotary: Callable[..., tuple[Tensor, Tensor]] = decoder.rotary_emb
        embedding = decoder.embed_tokens
        self.embedding: Weights = _array(embedding.weight)
        self.embedding_scale = _array(cast("Tensor", embedding.scale)) if isinstance(embedding, Int8Embedding) else None

    def __call__(self, rows: Rows, tokens: list[int], write: list[bool]) -> Tensor:
        """Feeds one token a row, written into the memory where `write` says so: float32 logits [B, V]."""
        from deltamem_agents.ops.decode_kernels import add_and_normalize, attend, correct, glu

        x, y = self.embedding[tokens].astype(np.float32), rows.buffer("y", self.embedding.shape[1])
        if self.embedding_scale is not None:
            x *= self.embedding_scale[tokens][:, None]
        h = rows.buffer("h", x.shape[1])
        cos, sin = self._angles(x, rows.lengths)
        writable = _EVERYWHERE if all(write) else np.array(write)[:, None]
        y[:] = 0
        for layer, (keys, values) in zip(self.layers, rows.cache, strict=True):
            add_and_normalize(x, y, layer.norms[0], self.eps, h)
            q, k, v = (self._project(rows, layer, name, h) for name in "qkv")
            reads = None if layer.memory is None else self._remember(layer.memory, rows, h, any(write), writable)
            if layer.memory is not None and reads is not None:
                for name, out in (("q", q), ("k", k), ("v", v)):
                    if name in layer.memory.deltas:
                        correct(out, reads, layer.memory.deltas[name], self.config.scale)
            attended = rows.buffer("attended", q.shape[1])
            attend(
                q,
                k,
                v,
                *layer.head_norms,
                self.eps,
                cos,
                sin,
                keys,
                values,
                rows.slots,
                rows.lengths,
                layer.scaling,
                attended,
            )
            layer.projections["o"](attended, y)
            if layer.memory is not None and reads is not None and "o" in layer.memory.deltas:
                correct(y, reads, layer.memory.deltas["o"], self.config.scale)
            add_and_normalize(x, y, layer.norms[1], self.eps, h)
            gate, up = (self._project(rows, layer, name, h) for name in ("gate", "up"))
            glu(gate, up, gate)
            layer.projections["down"](gate, y)
        add_and_normalize(x, y, self.last_norm, self.eps, h)
        rows.lengths += 1
        logits = torch.empty(len(tokens), self.head.weight.shape[0])
        self.head(h, logits.numpy())
        return logits

    def _angles(self, x: "Floats", lengths: NDArray[np.int64]) -> tuple["Floats", "Floats"]:
        """The cosines and sines of each row's position, [B, D]."""
        angles = self.rotary(torch.from_numpy(x).unsqueeze(1), torch.from_numpy(lengths).unsqueeze(1))
        cos, sin = (one.squeeze(1).contiguous().numpy() for one in angles)
        return cos, sin

    def _project(self, rows: Rows, layer: Layer, name: str, h: "Floats") -> "Floats":
        out = rows.buffer(name, layer.projections[name].weight.shape[0])
        layer.projections[name](h, out)
        return out

    def _remember(
        self, memory: Memory, rows: Rows, h: "Floats", writes: bool, writable: NDArray[np.bool_]
    ) -> "Floats":
        """The reads of the rows' tokens, [B, N·r]; states and carries go on."""
        from deltamem_agents.ops.native_kernels import fused

        config, state = self.config, rows.state[memory.index]
        in_proj = memory.in_proj if writes else memory.in_proj[: memory.read_rows]
        projected = rows.buffer("projected", in_proj.shape[0])
        multiply(h, in_proj, NO_SCALE, projected)
        reads = rows.buffer("reads", config.width)
        batch, heads, rank, _ = state.shape
        fused(
            projected.reshape(batch, 1, -1),
            *memory.gates,
            state,
            writable,
            _EVERYWHERE,
            MODES[config.state_update_mode],
            config.normalize_qk,
            config.gate_floor,
            writes,
            reads.reshape(batch, 1, heads, rank),
            state,
            rows.carry[memory.index] if config.key_shift else _NO_MATCH,
        )
        return reads


def _layer(layer: Any, memory: Memory | None) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    modules = {name: getattr(attention, f"{name}_proj") for name in "qkvo"}
    modules |= {name: getattr(mlp, f"{name}_proj") for name in ("gate", "up", "down")}
    norms = [_array(n.weight) if (n := getattr(attention, f"{k}_norm", None)) is not None else NO_SCALE for k in "qk"]
    return Layer(
        (_array(layer.input_layernorm.weight), _array(layer.post_attention_layernorm.weight)),
        {name: Product.of(module) for name, module in modules.items()},
        (norms[0], norms[1]),
        float(attention.scaling),
        memory,
    )


def _array(tensor: Tensor) -> Any:
    return tensor.detach().numpy()


def _places(model: DeltaMemModel) -> list[int]:
    """Where all of a model's weights are in memory."""
    tensors = [*model.backbone.parameters(), *model.backbone.buffers(), *model.adapter.parameters()]
    return [tensor.data_ptr() for tensor in tensors]


def obstacle(model: DeltaMemModel) -> str | None:
    """Why a model can't be decoded by compiled loops; None where it can."""
    backbone, config = model.backbone, model.adapter.config
    name, settings = type(backbone).__name__, backbone.config
    if type(backbone).__module__.split(".")[0] != "transformers" or name not in SERVED:
        return f"it is a {name}, not one of {', '.join(SERVED)}"
    if not native_available():
        return "numba cannot be imported here"
    if hooked(model):
        return "its modules are hooked by others"
    modules = list(backbone.modules())
    if any("forward" in vars(module) for module in modules):
        return "the forward of one of its modules was replaced"
    tensors = [*backbone.parameters(), *model.adapter.parameters()]
    if any(not t.is_cpu or t.dtype != torch.float32 or not t.is_contiguous() for t in tensors):
        return "its weights are not all float32 or int8 on the CPU"
    linear = [m for m in modules if hasattr(m, "in_features")]
    if any(type(m) not in (nn.Linear, Int8Linear) for m in linear):
        return "some of its linear layers are of another kind"
    windows = [getattr(m, "sliding_window", None) for m in modules]
    if any(w is not None for w in windows) or (name.startswith("Mistral") and settings.sliding_window is not None):
        return "its attention has a sliding window"
    if settings.hidden_act not in ("silu", "swish"):
        return f"its MLP computes {settings.hidden_act}"
    kind = getattr(backbone.model.rotary_emb, "rope_type", "default")
    if kind not in TURNED:
        return f"its rotary positions are of the kind {kind!r}"
    if config.trainable_delta_scale != "off" or config.delta_o_rmsnorm:
        return "its adapter scales or normalises what is read"
    return None


def hooked(model: DeltaMemModel) -> bool:
    """Whether others have hooked the model, who would see nothing of a compiled step."""
    if model._forward_hooks or model._forward_pre_hooks:
        return True
    found = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.backbone.modules())
    return found != sum(len(attached.handles) for attached in model._attached)


def compiled_step(model: DeltaMemModel) -> CompiledStep | None:
    """The model's step, made once and again where its weights have moved; None for models that can't have one.

    The reason is logged once a model.
    """
    known = model.__dict__.get("_compiled_step")
    reason = obstacle(model)
    if reason is not None:
        if known != reason and model.device.type == "cpu":
            log.warning("decoding by the model's own forward, not by compiled loops: %s", reason)
        model.__dict__["_compiled_step"] = reason
        return None
    if not isinstance(known, CompiledStep) or known.places != _places(model):
        known = model.__dict__["_compiled_step"] = CompiledStep(model)
    return known
