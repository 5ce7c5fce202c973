"""Rows that decode together by compiled loops, each in a slot of one KV cache with room to grow."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.generation.compiled import CompiledStep, Rows, compiled_step, hooked
from deltamem_agents.generation.rows import Batch, Row, can_batch, kv_cache, kv_tensors
from deltamem_agents.state import MemoryState

ROOM = 64
"""Tokens: slots grow by at least so many."""


def joined(model: DeltaMemModel, rows: Sequence[Row], *, compiled: bool = True) -> "Batch | SlotBatch":
    """Rows that decode together: in slots if the model and the rows allow it, and nobody has said otherwise."""
    step = compiled_step(model) if compiled else None
    return Batch(model, rows) if step is None or not _fit(model, rows) else SlotBatch(model, step, rows)


def _fit(model: DeltaMemModel, rows: Sequence[Row]) -> bool:
    """Whether the rows are this model's: others are left to its forward, which says what is wrong."""
    config, layers = model.adapter.config, len(model._attached)
    state = (1, layers, config.num_state_heads, config.rank, config.rank)
    carry = (1, layers, config.width) if config.key_shift else None
    depth = model.backbone.config.num_hidden_layers
    return can_batch(rows) and all(
        tuple(row.state.tensor.shape) == state
        and (None if row.carry is None else tuple(row.carry.shape)) == carry
        and row.cache is not None
        and len(row.cache.layers) == depth
        and all(t.dtype == torch.float32 and t.shape[2] == len(row.ids) for t in kv_tensors(row.cache.layers[0]))
        for row in rows
    )


class SlotBatch:
    """`Batch` for models that have a compiled step: the rows are spent by it, and leave it by copies.

    A row that joins or leaves moves no other one's keys and values; only when there is no slot left, or no room in one,
    they all move into a larger cache.
    """

    def __init__(self, model: DeltaMemModel, step: CompiledStep, rows: Sequence[Row]) -> None:
        assert rows, "there are no rows to decode"
        self.model, self._step = model, step
        self.ids: list[list[int]] = []
        self._slots: list[int] = []
        first = kv_tensors(cast("object", rows[0].cache.layers[0]))[0]  # type: ignore[union-attr]
        _, heads, _, size = first.shape
        self._cache = torch.empty(len(step.layers), 2, 0, heads, 0, size)  # [layers, 2, slots, heads, room, D]
        self._state = torch.empty(0)
        self._carry = torch.empty(0)
        self._take([], rows)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.ids)

    def step(self, tokens: Sequence[int], write: Sequence[bool]) -> Tensor:
        """Feeds one token per row, written where `write` says so; float32 logits [B, V]."""
        if max(map(len, self.ids)) >= self._cache.shape[4]:
            self._grow(len(self), max(map(len, self.ids)) + 1)
            self._bind()
        logits = self._step(self._rows, list(tokens), list(write))
        for ids, token in zip(self.ids, tokens, strict=True):
            ids.append(token)
        return logits

    def row(self, index: int) -> Row:
        """One row by itself, with its own part of the cache."""
        ids, slot = tuple(self.ids[index]), self._slots[index]
        pairs = [[t[slot : slot + 1, :, : len(ids)].clone() for t in layer] for layer in self._cache]
        state = MemoryState(self._state[:, index].clone().unsqueeze(0))
        carry = self._carry[:, index].clone().unsqueeze(0) if self.model.adapter.config.key_shift else None
        return Row(state, ids, kv_cache(pairs), carry)

    def reformed(self, keep: Sequence[int], rows: Sequence[Row] = ()) -> "Batch | SlotBatch":
        """The batch of some of these rows and of new ones, in that order; this one is spent by it."""
        if hooked(self.model) or not _fit(self.model, rows):
            return Batch(self.model, [*(self.row(index) for index in keep), *rows])
        self._take(keep, rows)
        return self

    def _take(self, keep: Sequence[int], rows: Sequence[Row]) -> None:
        """Leaves only some of the rows, and puts new ones into free slots."""
        kept = torch.tensor(list(keep), dtype=torch.long)
        states = [self._state[:, kept]] if keep else []
        self._state = torch.cat([*states, *(row.state.tensor.transpose(0, 1) for row in rows)], 1).contiguous()
        if self.model.adapter.config.key_shift:
            carries = [self._carry[:, kept]] if keep else []
            carries += [cast("Tensor", row.carry).transpose(0, 1) for row in rows]
            self._carry = torch.cat(carries, 1).contiguous()
        self.ids = [self.ids[index] for index in keep]
        self._slots = [self._slots[index] for index in keep]
        longest = max(len(ids) for ids in (*self.ids, *(row.ids for row in rows)))
        if len(self) + len(rows) > self._cache.shape[2] or longest >= self._cache.shape[4]:
            self._grow(len(self) + len(rows), longest + 1)
        free = (slot for slot in range(self._cache.shape[2]) if slot not in self._slots)
        for row, slot in zip(rows, list(free), strict=False):
            layers = row.cache.layers  # type: ignore[union-attr]
            for mine, its in zip(self._cache, layers, strict=True):
                for target, source in zip(mine, kv_tensors(its), strict=True):
                    target[slot, :, : len(row.ids)] = source[0]
            layers.clear()  # whoever still holds the row would hold its cache a second time
            self.ids.append(list(row.ids))
            self._slots.append(slot)
        self._bind()

    def _grow(self, slots: int, room: int) -> None:
        """A larger cache, with the rows in the first slots of it; a quarter more room than is needed."""
        layers, pair, before, heads, had, size = self._cache.shape
        room = had if room <= had else room + max(ROOM, room // 4)
        larger = torch.empty(layers, pair, max(slots, before), heads, room, size)
        for place, (slot, ids) in enumerate(zip(self._slots, self.ids, strict=True)):
            larger[:, :, place, :, : len(ids)] = self._cache[:, :, slot, :, : len(ids)]
        self._cache, self._slots = larger, list(range(len(self.ids)))

    def _bind(self) -> None:
        """What the compiled step sees of the rows."""
        shifts = self.model.adapter.config.key_shift
        none = np.empty((0, 0), np.float32)
        self._rows = Rows(
            slots=np.array(self._slots, np.int64),
            lengths=np.array([len(ids) for ids in self.ids], np.int64),
            cache=[(pair[0].numpy(), pair[1].numpy()) for pair in self._cache],
            state=[one.numpy() for one in self._state],
            carry=[one.numpy() for one in self._carry] if shifts else [none] * len(self._state),
        )
