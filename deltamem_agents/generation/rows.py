"""Rows: token sequences with a KV cache and a memory each. Rows in, rows out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.errors import StateError
from deltamem_agents.state import MemoryState

PREFILL_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that go through the model together, written or only read past."""

    ids: tuple[int, ...]
    write: bool
    spans: tuple[int, ...] | None = None
    """For span writes: the span each token belongs to. A piece with spans is a forward of its own."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence: what has been fed, the KV cache of it, and the memory after it.

    The cache is extended in place by `feed` and `Batch.step`, so a row is spent once it has been fed.
    """

    state: MemoryState
    ids: tuple[int, ...] = ()
    cache: Cache | None = field(default=None, repr=False)
    carry: Tensor | None = field(default=None, repr=False)
    """What the key of the next token needs of the last one, [1, layers, N·r]; None where keys don't see it."""

    @property
    def cache_bytes(self) -> int:
        """Bytes held by the KV cache."""
        if self.cache is None:
            return 0
        tensors = [t for layer in self.cache.layers for t in vars(layer).values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)


def rewound(row: Row, earlier: Row) -> Row | None:
    """The row as it was when it was `earlier`, which has been fed since: its cache is cut; None where that can't be."""
    if row.ids[: len(earlier.ids)] != earlier.ids or not can_batch([row]):
        return None
    layers, kept = cast("Cache", row.cache).layers, len(earlier.ids)
    pairs = [[tensor[:, :, :kept].clone() for tensor in kv_tensors(layer)] for layer in layers]
    return Row(earlier.state, earlier.ids, kv_cache(pairs), earlier.carry)


def feed(model: DeltaMemModel, row: Row, pieces: Sequence[Piece]) -> tuple[Row, Tensor]:
    """Prefills pieces after what the row holds already.

    Returns:
        The row after them, and float32 logits [V] after the last token.
    """
    assert any(p.ids for p in pieces), "there is nothing to feed"
    logits: Tensor | None = None
    for part in forwards(pieces):
        row, logits = fed(model, row, part)
    return row, cast("Tensor", logits)


def fed(model: DeltaMemModel, row: Row, part: "Forward") -> tuple[Row, Tensor]:
    """`feed` of what goes through one forward."""
    device = model.device
    out = model(
        input_ids=torch.tensor([part.ids], device=device),
        past_key_values=row.cache,
        state=row.state,
        write=part.write[0] if len(set(part.write)) == 1 else torch.tensor([part.write], device=device),
        spans=None if part.spans is None else torch.tensor([part.spans], device=device),
        carry=row.carry,
        logits_to_keep=1,
    )
    after = replace(row, state=out.state, ids=row.ids + part.ids, cache=out.past_key_values, carry=out.carry)
    return after, out.logits[0, -1].float()


class Forward(NamedTuple):
    """Tokens of one row that go through one forward."""

    ids: tuple[int, ...]
    write: tuple[bool, ...]
    """Which of them are written."""
    spans: tuple[int, ...] | None = None
    """As in `Piece`."""


def forwards(pieces: Sequence[Piece]) -> list[Forward]:
    """Groups pieces into forwards: token writes together, up to a chunk; span writes one piece at a time."""
    found: list[Forward] = []
    ids: tuple[int, ...] = ()
    write: tuple[bool, ...] = ()
    for piece in (*pieces, None):
        if ids and (piece is None or piece.spans is not None):
            for start in range(0, len(ids), PREFILL_CHUNK):
                found.append(Forward(ids[start : start + PREFILL_CHUNK], write[start : start + PREFILL_CHUNK]))
            ids, write = (), ()
        if piece is None or not piece.ids:
            continue
        if piece.spans is not None:
            found.append(Forward(piece.ids, (piece.write,) * len(piece.ids), piece.spans))
        else:
            ids, write = ids + piece.ids, write + (piece.write,) * len(piece.ids)
    return found


def can_batch(rows: Sequence[Row]) -> bool:
    """Whether the rows' caches can be joined: plain growing caches only, no sliding windows."""
    return all(r.cache is not None and all(type(layer) is DynamicLayer for layer in r.cache.layers) for r in rows)


class Batch:
    """Rows that decode together, left-padded to the longest, one token each a step. The rows are spent by it."""

    def __init__(self, model: DeltaMemModel, rows: Sequence[Row]) -> None:
        assert rows, "there are no rows to decode"
        assert len(rows) == 1 or can_batch(rows), "these rows cannot be joined"
        self.model = model
        self.ids = [list(r.ids) for r in rows]
        self.state = MemoryState.stack([r.state for r in rows])
        self.cache = cast("Cache", rows[0].cache) if len(rows) == 1 else _join(rows)
        self.carry = joined_carry(rows)
        longest = max(len(r.ids) for r in rows)
        self.mask = torch.zeros(len(rows), longest, dtype=torch.long, device=model.device)
        for index, row in enumerate(rows):
            self.mask[index, longest - len(row.ids) :] = 1

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.ids)

    def step(self, tokens: Sequence[int], write: Sequence[bool]) -> Tensor:
        """Feeds one token per row, written where `write` says so; float32 logits [B, V]."""
        for ids, token in zip(self.ids, tokens, strict=True):
            ids.append(token)
        padded = len(self.ids) > 1
        if padded:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.ids), 1)], 1)
        out = self.model(
            input_ids=torch.tensor([[t] for t in tokens], device=self.model.device),
            attention_mask=self.mask if padded else None,
            past_key_values=self.cache,
            state=self.state,
            write=write[0] if len(set(write)) == 1 else torch.tensor([[w] for w in write], device=self.model.device),
            carry=self.carry,
            logits_to_keep=1,
        )
        self.state, self.cache, self.carry = out.state, out.past_key_values, out.carry
        return cast("Tensor", out.logits[:, -1].float())

    def row(self, index: int) -> Row:
        """One row by itself, with its own part of the cache."""
        return self._row(index, Tensor.clone)

    def reformed(self, keep: Sequence[int], rows: Sequence[Row] = ()) -> "Batch":
        """The batch of some of these rows and of new ones, in that order: one copy of the cache, without old padding.

        This batch is spent by it.
        """
        return Batch(self.model, [*(self._row(index, lambda view: view) for index in keep), *rows])

    def _row(self, index: int, own: Callable[[Tensor], Tensor]) -> Row:
        ids = tuple(self.ids[index])
        if len(self) == 1:
            return Row(self.state, ids, self.cache, self.carry)
        pairs = [[own(t[index : index + 1, :, -len(ids) :]) for t in kv_tensors(layer)] for layer in self.cache.layers]
        carry = None if self.carry is None else self.carry[index : index + 1].clone()
        return Row(self.state.rows(index), ids, kv_cache(pairs), carry)


def joined_carry(rows: Sequence[Row]) -> Tensor | None:
    """The carries of rows of one model, [B, layers, N·r].

    Raises:
        StateError: they are not of one shape.
    """
    carries = [r.carry for r in rows if r.carry is not None]
    shapes = [None if r.carry is None else list(r.carry.shape) for r in rows]
    if any(shape != shapes[0] for shape in shapes):
        raise StateError(f"rows with carries {shapes} cannot decode together, expected one shape, that of their model")
    return torch.cat(carries) if carries else None


def kv_tensors(layer: object) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer that `can_batch` has let through."""
    growing = cast("DynamicLayer", layer)
    return cast("Tensor", growing.keys), cast("Tensor", growing.values)


def kv_cache(pairs: Sequence[Sequence[Tensor]]) -> DynamicCache:
    """The cache of these keys and values, a pair for each layer; nothing is copied."""
    cache = DynamicCache()
    for keys, values in pairs:
        layer = DynamicLayer()  # type: ignore[no-untyped-call]
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _join(rows: Sequence[Row]) -> DynamicCache:
    caches = [cast("Cache", r.cache) for r in rows]
    longest = max(len(r.ids) for r in rows)
    pairs = []
    for number in range(len(caches[0].layers)):
        parts = zip(*(kv_tensors(cache.layers[number]) for cache in caches), strict=True)
        pairs.append([_left_padded(tensors, longest) for tensors in parts])
    for cache in caches:
        cache.layers.clear()  # whoever still holds the row would hold its cache a second time
    return kv_cache(pairs)


def _left_padded(tensors: Sequence[Tensor], longest: int) -> Tensor:
    """Joins [1, heads, T, size] of different T: [B, heads, longest, size], zeros first."""
    _, heads, _, size = tensors[0].shape
    joined = tensors[0].new_zeros(len(tensors), heads, longest, size)
    for row, tensor in zip(joined, tensors, strict=True):
        row[:, longest - tensor.shape[2] :] = tensor[0]
    return joined
