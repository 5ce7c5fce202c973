"""Listening to a forward: every write into the memory, how strong it is, and how far gates are open."""

from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.layer import DeltaMemLayer, LayerOutput, shifted
from deltamem_agents.ops import delta_rule

Positions = tuple[int, ...]
"""The tokens that make up one write, counted from where the recording began."""


@dataclass(slots=True)
class _LayerRecord:
    """One layer's writes, in order."""

    seen: int = 0
    """Tokens that have passed, written or not."""
    positions: list[Positions] = field(default_factory=list)
    strengths: list[Tensor] = field(default_factory=list)
    write_gates: list[Tensor] = field(default_factory=list)
    keep_gates: list[Tensor] = field(default_factory=list)
    read_gates: list[Tensor] = field(default_factory=list)


class WriteRecorder:
    """Records what one row's forwards write while it is open; use it with `with`, outside of any other forward.

    It takes each write by itself, from the state before it, so it costs one small step per write and layer.
    """

    def __init__(self, model: DeltaMemModel) -> None:
        self._layers = list(model.adapter.layers.values())
        self._records = {layer: _LayerRecord() for layer in self._layers}

    def __enter__(self) -> Self:
        """Begins to listen."""
        self._hooks = [layer.register_forward_pre_hook(_with_gates, with_kwargs=True) for layer in self._layers]
        self._hooks += [layer.register_forward_hook(self._passed, with_kwargs=True) for layer in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        """Stops listening; what was recorded stays."""
        for hook in self._hooks:
            hook.remove()

    @property
    def positions(self) -> list[Positions]:
        """The tokens of each write, in order: one for token writes, all of the span for span writes."""
        return self._records[self._layers[0]].positions

    @property
    def strengths(self) -> Tensor:
        """‖S_after − S_before‖ / ‖S_after‖ of each write, all heads of a layer together, float32 [layers, writes].

        What the gates let fade counts as change too. 0 where the state is zero after the write.
        """
        return self._stacked([self._records[layer].strengths for layer in self._layers])

    @property
    def write_gates(self) -> Tensor:
        """β of each write, the mean over heads and rows, float32 [layers, writes]."""
        return self._stacked([self._records[layer].write_gates for layer in self._layers])

    @property
    def keep_gates(self) -> Tensor:
        """λ of each write, the mean over heads and rows, float32 [layers, writes]; 1 where nothing ever fades."""
        return self._stacked([self._records[layer].keep_gates for layer in self._layers])

    @property
    def read_gates(self) -> Tensor:
        """How far reads opened at each token: g, the mean over heads, float32 [layers, tokens]; 1 without a gate."""
        return self._stacked([self._records[layer].read_gates for layer in self._layers])

    def _stacked(self, layers: list[list[Tensor]]) -> Tensor:
        return torch.stack([torch.cat(parts).cpu() if parts else torch.zeros(0) for parts in layers])

    def _passed(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor | bool | None], out: LayerOutput
    ) -> None:
        assert isinstance(module, DeltaMemLayer)
        hidden, state = args  # [1, T, H], [1, N, r, r]
        assert len(hidden) == 1, "only one row at a time can be recorded"
        record, tokens = self._records[module], hidden.shape[1]
        units = _units(kwargs["write"], kwargs["spans"], tokens)
        if units:
            writes = _writes(module, hidden, kwargs["carry"], units)
            _, _, keep, _, beta = writes
            record.write_gates.append(beta[0].mean((1, 2)))
            record.keep_gates.append(keep[0].mean((1, 2)))
            record.strengths.append(_strengths(writes, state))
            record.positions += [tuple(record.seen + position for position in unit) for unit in units]
        record.read_gates.append(hidden.new_ones(tokens).float() if out.gate is None else out.gate[0].mean(-1))
        record.seen += tokens


def _with_gates(module: nn.Module, args: object, kwargs: dict[str, object]) -> tuple[object, dict[str, object]]:
    return args, kwargs | {"gates": True}


def _units(write: Tensor | bool | None, spans: Tensor | bool | None, tokens: int) -> list[list[int]]:
    """The tokens of each write of a forward, in the order in which they are written."""
    on = write[0].tolist() if isinstance(write, Tensor) else [bool(write)] * tokens
    if not isinstance(spans, Tensor):
        return [[position] for position in range(tokens) if on[position]]
    units: dict[int, list[int]] = {}
    for position, span in enumerate(spans[0].tolist()):
        if on[position] and span >= 0:
            units.setdefault(span, []).append(position)
    return [units[span] for span in sorted(units)]


def _writes(
    layer: DeltaMemLayer, hidden: Tensor, carry: Tensor | bool | None, units: list[list[int]]
) -> tuple[Tensor, ...]:
    """k, v, keep, erase and write of each unit, as the layer computes them; each [1, writes, N, r]."""
    weight, before = layer.in_proj, None
    if layer.config.key_shift:
        projected = F.linear(hidden.to(weight.dtype), weight[layer.block["shift"]]).float()
        each, _ = shifted(projected, carry if isinstance(carry, Tensor) else None, None)
        before = torch.stack([each[0, unit].mean(0) for unit in units])[None]
    inputs = torch.stack([hidden[0, unit].float().mean(0) for unit in units])[None]  # [1, writes, H]
    return layer.writes(F.linear(inputs.to(weight.dtype), weight[layer.block["k"].start :]), before, None)


def _strengths(writes: tuple[Tensor, ...], state: Tensor) -> Tensor:
    """Writes one after the other from a state [1, N, r, r], each by itself -> [writes]."""
    strengths = []
    for k, v, keep, erase, write in zip(*(torch.split(x, 1, 1) for x in writes), strict=True):
        after = delta_rule(torch.zeros_like(k), k, v, keep, erase, write, state)[1]
        norm = after.norm()
        strengths.append(torch.where(norm > 0, (after - state).norm() / norm, 0.0))
        state = after
    return torch.stack(strengths)
