"""Listening to a forward: every write into the memory, how strong it is, and how far its gates are open."""

from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.layer import DeltaMemLayer

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


class WriteRecorder:
    """Records what one row's forwards write while it is open; use it with `with`, outside of any other forward.

    It takes each write by itself, from the state before it, so it costs one small step per write and layer.
    """

    def __init__(self, model: DeltaMemModel) -> None:
        self._layers = list(model.adapter.layers.values())
        self._records = {layer: _LayerRecord() for layer in self._layers}

    def __enter__(self) -> Self:
        """Begins to listen."""
        self._hooks = [layer.register_forward_hook(self._passed, with_kwargs=True) for layer in self._layers]
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

    def _stacked(self, layers: list[list[Tensor]]) -> Tensor:
        return torch.stack([torch.cat(parts).cpu() if parts else torch.zeros(0) for parts in layers])

    def _passed(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor | bool | None], out: object
    ) -> None:
        assert isinstance(module, DeltaMemLayer)
        hidden, state = args  # [1, T, H], [1, N, r, r]
        assert len(hidden) == 1, "only one row at a time can be recorded"
        record, tokens = self._records[module], hidden.shape[1]
        units = _units(kwargs["write"], kwargs["spans"], tokens)
        if units:
            inputs = torch.stack([hidden[0, unit].float().mean(0) for unit in units])  # [writes, H]
            beta, lam = _gates(module, inputs)
            record.write_gates.append(beta)
            record.keep_gates.append(lam)
            record.strengths.append(_strengths(module, inputs, state))
            record.positions += [tuple(record.seen + position for position in unit) for unit in units]
        record.seen += tokens


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


def _gates(layer: DeltaMemLayer, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """β and λ as the layer computes them, their means over heads and rows: [writes, H] -> two of [writes]."""
    config = layer.config
    raw = F.linear(inputs.to(layer.in_proj.dtype), layer.in_proj[3 * config.width :]).float()
    raw = torch.sigmoid(raw + layer.gate_bias.float())
    beta = raw[:, : config.gates].mean(1)
    if config.state_update_mode == "no_lambda":
        return beta, torch.ones_like(beta)
    return beta, 1.0 - beta if config.couple_lambda else raw[:, config.gates :].mean(1)


def _strengths(layer: DeltaMemLayer, inputs: Tensor, state: Tensor) -> Tensor:
    """Writes one after the other, each as a token of its own: [writes, H] and [1, N, r, r] -> [writes]."""
    strengths = []
    for one in inputs:
        after = layer.forward(one[None, None], state)[1]  # not layer(…): that would call this recorder again
        norm = after.norm()
        strengths.append(torch.where(norm > 0, (after - state).norm() / norm, 0.0))
        state = after
    return torch.stack(strengths)
