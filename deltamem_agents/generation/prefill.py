"""Prompts of several rows, fed together: one forward for those of about one length, each row as if it were alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.generation.rows import (
    PREFILL_CHUNK,
    Forward,
    Piece,
    Row,
    can_batch,
    fed,
    forwards,
    joined_carry,
    kv_tensors,
)
from deltamem_agents.state import MemoryState

PADDING = 32
"""Tokens: about what a forward of its own costs, so a row that needs no more padding gains by sharing another's."""
SPREAD = 512
"""Tokens: rows whose caches differ by more than this share no forward, where all would be as long as the longest."""


@dataclass(slots=True, eq=False)
class Prompt:
    """A row that is being fed, and what is left to feed."""

    row: Row
    left: list[Piece]
    """Pieces that are not empty."""
    cancelled: Callable[[], bool]
    """Whether nobody waits for it any more."""
    logits: Tensor | None = None
    """float32 [V], after the last token that was fed; None: none yet."""

    @property
    def tokens(self) -> int:
        """How many are left."""
        return sum(len(piece.ids) for piece in self.left)


class Prefill:
    """Feeds prompts, together where that saves time: plain caches, token writes, about as many tokens.

    An error in a forward is that of all prompts in it, whose rows are spent.
    """

    def __init__(self, model: DeltaMemModel) -> None:
        self._model = model
        self._depth: int | None = None  # layers of its new caches; 0: they can't be joined; None: none was seen yet

    def feed(self, parts: Sequence[tuple[Prompt, int]]) -> list[BaseException | None]:
        """Feeds at least so many tokens of each prompt, or none of it for 0; what went wrong with each, if anything."""
        errors: list[BaseException | None] = [None] * len(parts)
        todo: list[list[Forward]] = []
        for prompt, tokens in parts:
            first, prompt.left = divided(prompt.left, tokens)
            todo.append(forwards(first))
        while any(todo):
            places = self._alike([prompt for prompt, _ in parts], todo)
            prompts, share = [parts[place][0] for place in places], [todo[place].pop(0) for place in places]
            try:
                self._forward(prompts, share)
            except BaseException as error:
                for place in places:
                    errors[place] = error
                    todo[place].clear()
        return errors

    def _alike(self, prompts: Sequence[Prompt], todo: Sequence[Sequence[Forward]]) -> list[int]:
        """Which prompts go through the next forward: the one with the longest, and those that gain by sharing it."""
        waiting = sorted((place for place in range(len(todo)) if todo[place]), key=lambda p: -len(todo[p][0].ids))
        first, chosen = waiting[0], waiting[:1]
        if not self._joinable(prompts[first], todo[first][0]):
            return chosen
        longest, lengths = len(todo[first][0].ids), [len(prompts[first].row.ids)]
        for place in waiting[1:]:
            tokens, length = len(todo[place][0].ids), len(prompts[place].row.ids)
            if longest - tokens > PADDING or (len(chosen) + 1) * longest > PREFILL_CHUNK:
                break
            if max(*lengths, length) - min(*lengths, length) <= SPREAD and self._joinable(
                prompts[place], todo[place][0]
            ):
                chosen.append(place)
                lengths.append(length)
        return chosen

    def _joinable(self, prompt: Prompt, part: Forward) -> bool:
        if part.spans is not None:
            return False
        return bool(self._depth) if prompt.row.cache is None else can_batch([prompt.row])

    def _forward(self, prompts: Sequence[Prompt], share: Sequence[Forward]) -> None:
        if len(prompts) > 1:
            rows = [_with_cache(prompt.row, self._depth or 0) for prompt in prompts]
            for prompt, (row, logits) in zip(prompts, fed_together(self._model, rows, share), strict=True):
                prompt.row, prompt.logits = row, logits
            return
        prompt = prompts[0]
        new = prompt.row.cache is None
        prompt.row, prompt.logits = fed(self._model, prompt.row, share[0])
        if new:
            self._depth = len(cast("Cache", prompt.row.cache).layers) if can_batch([prompt.row]) else 0


def fed_together(model: DeltaMemModel, rows: Sequence[Row], share: Sequence[Forward]) -> list[tuple[Row, Tensor]]:
    """Rows after their share of one forward, without spans, and float32 logits [V] after each one's last token.

    What is new is padded on the left, and so are the caches before it: [padding, cache, padding, new] in each row.

    Args:
        model: the model.
        rows: with caches that `can_batch` lets through; new ones have layers that are not initialised.
        share: what is fed, of any lengths.
    """
    device, width = model.device, max(len(part.ids) for part in share)
    past = max(len(row.ids) for row in rows)
    ids, mask, write = (torch.zeros(len(rows), size, dtype=torch.long) for size in (width, past + width, width))
    for place, (row, part) in enumerate(zip(rows, share, strict=True)):
        start = width - len(part.ids)
        ids[place, start:], write[place, start:] = torch.tensor(part.ids), torch.tensor(part.write)
        mask[place, past - len(row.ids) : past], mask[place, past + start :] = 1, 1
    written = {on for part in share for on in part.write}
    caches = [cast("Cache", row.cache) for row in rows]
    layers = zip(*(cast("list[DynamicLayer]", cache.layers) for cache in caches), strict=True)
    out = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        past_key_values=_cache_of([_Padded(own, [len(part.ids) for part in share], past) for own in layers]),
        state=MemoryState.stack([row.state for row in rows]),
        write=written.pop() if len(written) == 1 else write.bool().to(device),
        carry=joined_carry(_with_carries(model, rows)),
        logits_to_keep=1,
    )
    after = []
    for place, (row, part) in enumerate(zip(rows, share, strict=True)):
        carry = None if out.carry is None else out.carry[place : place + 1].clone()
        row = replace(row, state=out.state.rows(place), ids=row.ids + part.ids, carry=carry)
        after.append((row, out.logits[place, -1].float()))
    return after


class _Padded(DynamicLayer):
    """A layer's keys and values of several rows: each keeps its own, and attention sees them padded on the left."""

    def __init__(self, own: Sequence[DynamicLayer], new: Sequence[int], past: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.own, self.new, self.past = own, new, past
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens before this forward, padding included."""
        return self.past

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of what is cached and new, [B, heads, past + T, D] of [B, heads, T, D]."""
        shown = self._shown(0, key_states), self._shown(1, value_states)
        for place, (layer, tokens) in enumerate(zip(self.own, self.new, strict=True)):
            layer.update(*(states[place : place + 1, :, -tokens:] for states in (key_states, value_states)))
        return shown

    def _shown(self, which: int, states: Tensor) -> Tensor:
        if not self.past:
            return states
        rows, heads, tokens, size = states.shape
        shown = states.new_zeros(rows, heads, self.past + tokens, size)
        shown[:, :, self.past :] = states
        for row, layer in zip(shown, self.own, strict=True):
            if layer.is_initialized:
                cached = kv_tensors(layer)[which][0]
                row[:, self.past - cached.shape[1] : self.past] = cached
        return shown


def _with_cache(row: Row, depth: int) -> Row:
    """The row, with a cache to fill where it has none."""
    if row.cache is not None:
        return row
    return replace(row, cache=_cache_of([DynamicLayer() for _ in range(depth)]))  # type: ignore[no-untyped-call]


def _cache_of(layers: Sequence[DynamicLayer]) -> DynamicCache:
    cache = DynamicCache()
    cache.layers += layers
    return cache


def _with_carries(model: DeltaMemModel, rows: Sequence[Row]) -> Sequence[Row]:
    """Rows that begin carry nothing: zeros, where others carry something."""
    if all(row.carry is None for row in rows):
        return rows
    shape = (1, len(model.adapter.paths), model.adapter.config.width)
    return [
        row if row.ids or row.carry is not None else replace(row, carry=torch.zeros(shape, device=model.device))
        for row in rows
    ]


def divided(pieces: Sequence[Piece], tokens: int) -> tuple[list[Piece], list[Piece]]:
    """Pieces of at least the first so many tokens, and what is left: cut where they can be, spans are not."""
    first: list[Piece] = []
    for number, piece in enumerate(pieces):
        if tokens <= 0:
            return first, list(pieces[number:])
        if piece.spans is None and len(piece.ids) > tokens:
            rest = replace(piece, ids=piece.ids[tokens:])
            return [*first, replace(piece, ids=piece.ids[:tokens])], [rest, *pieces[number + 1 :]]
        first.append(piece)
        tokens -= len(piece.ids)
    return first, []
