"""A frozen Hugging Face decoder with a memory: state in, state out."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from deltamem_agents.adapter.adapter import DeltaMemAdapter
from deltamem_agents.adapter.attach import PASS_KEY, MemoryPass, attach
from deltamem_agents.adapter.kv_cache import cache_name
from deltamem_agents.errors import AdapterError, StateError, UnsupportedArchitectureError
from deltamem_agents.layer import LayerOutput
from deltamem_agents.state import MemoryState


@dataclass(slots=True)
class DeltaMemOutput:
    """What a forward of `DeltaMemModel` gives."""

    logits: Tensor
    """[B, T, V], or [B, logits_to_keep, V]."""
    past_key_values: Cache | None
    """The KV cache, extended by this forward. It belongs to one line of states and cannot be shared with another."""
    state: MemoryState
    """The memory after this forward."""
    carry: Tensor | None = None
    """What the keys of the next tokens need of the last one, float32 [B, layers, N·r], with `key_shift`: it belongs
    to the row, beside its KV cache, and goes into the next forward of these rows."""
    read_gates: Tensor | None = None
    """How far the reads of each token opened, float32 [B, T, layers, N], where asked for and the adapter has gates."""


class DeltaMemModel(nn.Module):
    """Attaches an adapter to a backbone. The backbone stays frozen, and its own after `detach()`.

    Args:
        backbone: any transformers causal LM with plain attention projections; its weights are never changed.
        adapter: an adapter made for it; moved to the backbone's device.

    Raises:
        FingerprintError: the adapter was made for another kind of backbone.
        AdapterError: the adapter does not fit, or the backbone carries a memory already.
        UnsupportedArchitectureError: names the module that cannot carry a memory.
    """

    def __init__(self, backbone: PreTrainedModel, adapter: DeltaMemAdapter) -> None:
        super().__init__()
        sites = adapter.sites_in(backbone)
        self.backbone = backbone
        self.adapter = adapter
        self._trainable = [p for p in backbone.parameters() if p.requires_grad]
        backbone.requires_grad_(False)
        for path, site in sites.items():
            device = next((p.device for p in site.module.parameters() if p.device.type != "meta"), None)
            if device is not None:
                adapter.layers[path].to(device)
        self._attached = attach(sites, adapter.layers)
        self._cache_name = cache_name(backbone)

    def detach(self) -> PreTrainedModel:
        """Removes every hook and returns the backbone as it was."""
        for layer in self._attached:
            layer.detach()
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self._attached, self._trainable = [], []
        return self.backbone

    @property
    def device(self) -> torch.device:
        """Where inputs and states belong."""
        return self.backbone.device

    def zero_state(self, rows: int = 1) -> MemoryState:
        """An empty memory for `rows` rows, on the model's device."""
        return self.adapter.zero_state(rows, device=self.device)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        state: MemoryState | None = None,
        write: bool | Tensor = True,
        spans: Tensor | None = None,
        carry: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        use_cache: bool = True,
        read_gates: bool = False,
    ) -> DeltaMemOutput:
        """Runs the backbone over B rows; every token reads its row's memory, and is written where `write` says so.

        Args:
            input_ids: long [B, T].
            attention_mask: [B, past + T], 1 for tokens and 0 for padding, on either side. None means no padding.
            position_ids: long [B, T]; None counts each row's unpadded tokens.
            past_key_values: the KV cache of the same rows on the same line of states; extended in place.
            state: the rows' memories; None means empty.
            write: whether tokens are written: one bool, or bool [B, T]. Padding is never written.
            spans: long [B, T], −1 for not written: each span is one write at the end of this forward (SSW).
            carry: the rows' carry out of the forward that made `past_key_values`; an adapter with `key_shift` needs it.
            logits_to_keep: as in transformers: only the last n positions' logits; 0 means all.
            use_cache: whether to build or extend a KV cache.
            read_gates: whether the read gates are given back.

        Raises:
            StateError: state, attention_mask, write, spans or carry do not belong to these rows, this adapter or this
                device.
            AdapterError: the model was detached, or gradients are checkpointed in the reentrant way.
            UnsupportedArchitectureError: the backbone does not hand keyword arguments to its attention modules.
        """
        if not self._attached:
            raise AdapterError("this model was detached from its backbone: build a new DeltaMemModel")
        rows, tokens = input_ids.shape
        state = self.zero_state(rows) if state is None else self._checked(state, rows)
        _check_tokens("write", write if isinstance(write, Tensor) else None, torch.bool, rows, tokens)
        _check_tokens("spans", spans, torch.long, rows, tokens)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        self._check_carry(carry, rows, past)
        valid: Tensor | None = None
        if attention_mask is not None:
            if not torch.compiler.is_compiling() and tuple(attention_mask.shape) != (rows, past + tokens):
                raise StateError(
                    f"attention_mask is {list(attention_mask.shape)}, expected [{rows}, {past} cached + {tokens} new]: "
                    "it says for every token, cached ones too, whether it is padding"
                )
            valid = attention_mask[:, -tokens:].bool()
            if position_ids is None:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -tokens:]
            if not torch.compiler.is_compiling() and bool(valid.all()):
                valid = None
            elif isinstance(write, Tensor):
                write = write & valid
            elif write:
                write = valid
        if isinstance(logits_to_keep, int) and logits_to_keep > 0:
            # positions as a tensor: the slice an int gives is strided, and a strided batch has lm_head copy its weight
            logits_to_keep = torch.arange(max(tokens - logits_to_keep, 0), tokens, device=input_ids.device)
        bound = MemoryPass(
            state.tensor,
            write,
            spans,
            torch.is_grad_enabled(),
            carry=carry,
            valid=valid,
            gates=read_gates,
            new=[None] * len(self._attached),
        )
        output = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep,
            use_cache=use_cache,
            **{self._cache_name: past_key_values, PASS_KEY: bound},
        )
        new = self._collect(bound)
        device = state.tensor.device
        config = self.adapter.config
        return DeltaMemOutput(
            output.logits,
            getattr(output, self._cache_name),
            state if write is False else MemoryState(torch.stack([n.state.to(device) for n in new], 1)),
            _stacked([n.carry for n in new], 1, device) if config.key_shift else None,
            _stacked([n.gate for n in new], 2, device) if read_gates and config.read_gate != "off" else None,
        )

    def _collect(self, bound: MemoryPass) -> list[LayerOutput]:
        unseen = [a.site.path for a, new in zip(self._attached, bound.new, strict=True) if new is None]
        if unseen:
            raise UnsupportedArchitectureError(
                f"the memory of {unseen[0]} saw nothing of this forward: {type(self.backbone).__name__} does not hand "
                "keyword arguments to its attention modules, not supported"
            )
        return cast("list[LayerOutput]", bound.new)

    def _check_carry(self, carry: Tensor | None, rows: int, past: int) -> None:
        config = self.adapter.config
        if not config.key_shift:
            if carry is not None:
                raise StateError("a carry was given, but this adapter's keys don't see the token before: leave it out")
            return
        if carry is None:
            if past:
                raise StateError(
                    f"{past} tokens are cached, but their carry is missing: pass the `carry` that came out of the "
                    "forward that made this cache"
                )
            return
        expected = (rows, len(self._attached), config.width)
        if tuple(carry.shape) != expected or carry.dtype != torch.float32:
            raise StateError(
                f"carry is {carry.dtype} {list(carry.shape)}, expected {torch.float32} {list(expected)}: it belongs to "
                "other rows or another adapter"
            )
        if carry.device != self.device:
            raise StateError(f"carry is on {carry.device}, the model on {self.device}: move it with carry.to(…)")

    def _checked(self, state: MemoryState, rows: int) -> MemoryState:
        config = self.adapter.config
        expected = (rows, len(self._attached), config.num_state_heads, config.rank, config.rank)
        if tuple(state.tensor.shape) != expected:
            raise StateError(f"state has shape {list(state.tensor.shape)}, expected {list(expected)} for these rows")
        if state.tensor.device != self.device:
            raise StateError(f"state is on {state.tensor.device}, the model on {self.device}: move it with state.to(…)")
        return state


def _check_tokens(name: str, tensor: Tensor | None, dtype: torch.dtype, rows: int, tokens: int) -> None:
    if tensor is not None and (tensor.dtype != dtype or tuple(tensor.shape) != (rows, tokens)):
        raise StateError(f"{name} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} [{rows}, {tokens}]")


def _stacked(parts: list[Tensor | None], dim: int, device: torch.device) -> Tensor:
    return torch.stack([cast("Tensor", p).to(device) for p in parts], dim)
