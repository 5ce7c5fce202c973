"""Memories that conversations leave behind, differentiable in the adapter."""

from collections.abc import Container, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deltamem_agents.backbone.spans import sentence_spans
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.messages import Message
from deltamem_agents.state import MemoryState
from deltamem_agents.train.episode import places
from deltamem_agents.train.features import Features, TokenRow, message_tokens
from deltamem_agents.train.losses import closed_cost, key_overlap, open_cost


@dataclass(frozen=True, slots=True)
class Written:
    """Memories, and how far the write gates opened for them."""

    state: MemoryState
    beta: Tensor
    """float32 [B, W]: β of each written token, the mean over layers and gates."""
    cost: Tensor
    """float32 [B, W]: what `losses.open_cost` says of them, the mean over layers and gates."""
    missed: Tensor
    """float32 [B, W]: what `losses.closed_cost` says of them, the mean over layers."""
    on: Tensor
    """bool [B, W]: which of them are written; the others are padding, or were only read before a message."""
    talk: Tensor
    """bool [B, W]: which belong to messages that tell nothing."""
    told: Tensor
    """long [B, W]: the fact whose value they belong to, from 1; 0: none."""
    overlap: Tensor
    """float32 scalar: `losses.key_overlap` of those, the mean over layers."""


def write_memories(
    features: Features,
    template: ChatTemplate,
    conversations: Sequence[Sequence[Message]],
    *,
    together: bool,
    talk: Sequence[Sequence[int]] | None = None,
    told: Sequence[Sequence[Sequence[str]]] | None = None,
    gate_gradients: bool = False,
) -> Written:
    """The memories that the conversations leave behind.

    Features come from the frozen backbone alone, reads off, which is what makes training cheap; only the gates and the
    recurrence are on the tape. Written are the messages of the adapter's `absorb_roles`.

    Args:
        features: of the model whose adapter learns.
        template: renders the messages.
        conversations: one per row of the result.
        together: whether a message is encoded after the others of its conversation, behind the template's own system
            prompt, or by itself; features of single messages may be cached.
        talk: for each conversation, positions of messages that tell nothing.
        told: for each conversation, values that its other messages tell, those of one thing together.
        gate_gradients: whether `beta`, `cost`, `missed` and `overlap` are on the tape.
    """
    config = features.model.adapter.config
    device = features.model.device
    idle = [set(t) for t in talk] if talk else [set[int]()] * len(conversations)
    rendered = [
        (_render_together if together else _render_apart)(template, messages, config) for messages in conversations
    ]
    rows = [row for parts in rendered for row in parts]
    if together:
        found = features.of([r.ids for r in rows], keep=[torch.tensor(r.positions, dtype=torch.long) for r in rows])
    else:
        found = features.of([r.ids for r in rows])
    pieces = iter(found)
    hidden, written, spans, told_nothing, telling = [], [], [], [], []
    for parts, silent, values in zip(rendered, idle, told or [()] * len(conversations), strict=True):
        hidden.append(torch.cat([next(pieces) for _ in parts]) if parts else _nothing(features))
        messages_of = [m for part in parts for m in part.messages]
        written.append(torch.tensor([m != CONTEXT for m in messages_of], dtype=torch.bool))
        spans.append(torch.tensor(_span_ids(template, parts, config.write_granularity), dtype=torch.long))
        told_nothing.append(torch.tensor([m in silent for m in messages_of], dtype=torch.bool))
        telling.append(torch.tensor(_telling(template, parts, values, silent), dtype=torch.long))
    inputs = pad_sequence(hidden, batch_first=True)  # [B, W, layers, H]
    on = pad_sequence(written, batch_first=True).to(device)
    span_ids = pad_sequence(spans, batch_first=True, padding_value=-1).to(device) if config.spans else None
    states = features.model.zero_state(len(conversations)).tensor
    facts = pad_sequence(telling, batch_first=True).to(device)
    rows_told, tokens_told = facts.nonzero(as_tuple=True)
    new, betas, costs, missed, overlaps = [], [], [], [], []
    for number, layer in enumerate(features.model.adapter.layers.values()):
        x = inputs[:, :, number].to(layer.in_proj.dtype)
        new.append(layer(x, states[:, number], write=on, spans=span_ids).state)
        with nullcontext() if gate_gradients else torch.no_grad():
            gates = layer.write_gate(x)
            betas.append(gates.mean(-1))
            costs.append(open_cost(gates).mean(-1))
            missed.append(closed_cost(gates))
            before = F.pad(x, (0, 0, 1, 0))[rows_told, tokens_told]
            keys = layer.keys(x[rows_told, tokens_told], before)
            overlaps.append(key_overlap(keys, rows_told, facts[rows_told, tokens_told]))
    beta, cost, closed = (torch.stack(found).mean(0) * on for found in (betas, costs, missed))
    silent_tokens = pad_sequence(told_nothing, batch_first=True).to(device)
    overlap = torch.stack(overlaps).mean()
    return Written(MemoryState(torch.stack(new, 1)), beta, cost, closed, on, silent_tokens, facts, overlap)


CONTEXT = -1
"""In place of a message: a token that is not written, but stands before one that is."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A forward row, its positions that matter to the memory, and the message each of those belongs to."""

    ids: TokenRow
    positions: list[int]
    messages: list[int]


def _render_apart(template: ChatTemplate, messages: Sequence[Message], config: DeltaMemConfig) -> list[_Row]:
    rows = []
    for number, message in enumerate(messages):
        if message.role in config.absorb_roles:
            ids = message_tokens(template, message)
            rows.append(_Row(ids, list(range(len(ids))), [number] * len(ids)))
    return rows


def _render_together(template: ChatTemplate, messages: Sequence[Message], config: DeltaMemConfig) -> list[_Row]:
    ids: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    for segment in template.render(messages):
        start = len(ids)
        ids += segment.ids
        if segment.message is not None and messages[segment.message].role in config.absorb_roles:
            if config.key_shift and start and start - 1 not in positions[-1:]:
                positions.append(start - 1)  # the first written token's key sees it
                owners.append(CONTEXT)
            positions += range(start, len(ids))
            owners += [segment.message] * len(segment.ids)
    return [_Row(tuple(ids), positions, owners)]


def _span_ids(template: ChatTemplate, parts: Sequence[_Row], granularity: str) -> list[int]:
    """Numbers the spans of a conversation's written tokens: one for each message, or for each sentence."""
    spans: list[int] = []
    for message, ids in _by_message(parts):
        sentences = [0] * len(ids)
        if granularity == "sentence_mean":
            sentences = list(sentence_spans([str(template.tokenizer.decode([i])) for i in ids]))
        start = max(spans, default=-1) + 1
        spans += [-1] * len(ids) if message == CONTEXT else [start + s for s in sentences]
    return spans


def _telling(
    template: ChatTemplate, parts: Sequence[_Row], told: Sequence[Sequence[str]], silent: Container[int]
) -> list[int]:
    """The fact, from 1, whose value each of a conversation's tokens belongs to; 0 in the messages that tell nothing."""
    telling: list[int] = []
    for message, ids in _by_message(parts):
        if not told or message == CONTEXT or message in silent:
            telling += [0] * len(ids)
            continue
        texts = [str(template.tokenizer.decode(ids[:n])) for n in range(len(ids) + 1)]  # a character may be two tokens
        found = [(n, place) for n, values in enumerate(told, 1) for v in values for place in places(texts[-1], v)]
        telling += [
            next((n for n, place in found if place.start < len(after) and len(before) < place.stop), 0)
            for before, after in pairwise(texts)
        ]
    return telling


def _by_message(parts: Sequence[_Row]) -> list[tuple[int, list[int]]]:
    """The ids of a conversation's tokens that matter to the memory, message by message."""
    tokens = [(m, row.ids[p]) for row in parts for p, m in zip(row.positions, row.messages, strict=True)]
    return [(m, [i for _, i in group]) for m, group in groupby(tokens, key=lambda token: token[0])]


def _nothing(features: Features) -> Tensor:
    model = features.model
    hidden = next(iter(model.adapter.layers.values())).shape.hidden
    return torch.zeros(0, len(features.modules), hidden, dtype=model.backbone.dtype, device=model.device)
