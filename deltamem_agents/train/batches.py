"""From episodes to tensors: memories written from cached-style features, and question-and-answer rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.adapter.attach import find_attention
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.messages import Message
from deltamem_agents.state import MemoryState


@contextmanager
def recorded_inputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects the hidden states that enter each module during forwards inside the block, in call order."""
    inputs: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        inputs.append((kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).detach())

    handles = [m.register_forward_pre_hook(record, with_kwargs=True) for m in modules]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def write_memories(
    model: DeltaMemModel, template: ChatTemplate, conversations: Sequence[Sequence[Message]], *, together: bool
) -> MemoryState:
    """The memories that the conversations leave behind, differentiable in the adapter.

    Features come from the frozen backbone alone, reads off, which is what makes training cheap; only the gates and the
    recurrence are on the tape. Written are the messages of the adapter's `absorb_roles`.

    Args:
        model: the model whose adapter learns.
        template: renders the messages.
        conversations: one per row of the result.
        together: whether a message is encoded after the others of its conversation, behind the template's own system
            prompt, or by itself.
    """
    roles = model.adapter.config.absorb_roles
    rows: list[Tensor] = []  # token ids of one forward row
    written: list[list[Tensor]] = []  # per conversation, flat positions of its written tokens: (row, position)
    for messages in conversations:
        parts = [messages] if together else [[m] for m in messages if m.role in roles]
        places = []
        for part in parts:
            row: list[int] = []
            for segment in template.render(part):
                on = segment.message is not None and part[segment.message].role in roles
                if segment.message is None and not together:
                    continue
                if on:
                    span = torch.arange(len(row), len(row) + len(segment.ids))
                    places.append(torch.stack([torch.full_like(span, len(rows)), span]))
                row += segment.ids
            rows.append(torch.tensor(row))
        written.append(places)
    ids, mask = _pad(rows, side="right")
    sites = find_attention(model.backbone)
    with recorded_inputs([sites[p].module for p in model.adapter.paths]) as inputs, torch.no_grad():
        model.backbone(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=torch.tensor([0]))
    where = [torch.cat(places, 1) for places in written]
    index = pad_sequence([w[0] * ids.shape[1] + w[1] for w in where], batch_first=True)  # [B, tokens written]
    counts = pad_sequence([torch.ones_like(w[0], dtype=torch.bool) for w in where], batch_first=True)
    states = model.zero_state(len(conversations)).tensor
    new = []
    for number, (layer, hidden) in enumerate(zip(model.adapter.layers.values(), inputs, strict=True)):
        new.append(layer(hidden.flatten(0, 1)[index], states[:, number], write=counts)[1])
    return MemoryState(torch.stack(new, 1))


@dataclass(frozen=True, slots=True)
class AnswerRows:
    """Prompts with their answers, left-padded so that all answers end together."""

    ids: Tensor
    """long [B, T]."""
    mask: Tensor
    """long [B, T]."""
    write: Tensor
    """bool [B, T]: the prompt tokens that are written as they pass, as they are in a conversation."""
    targets: Tensor
    """long [B, A + 1]: what the last A + 1 positions should predict, −100 where nothing counts."""


def answer_rows(
    template: ChatTemplate, prompts: Sequence[Sequence[Message]], answers: Sequence[str], *, roles: Sequence[str]
) -> AnswerRows:
    """Rows of prompt, generation prompt and answer; answers end with the template's end of message."""
    rows, writes, lengths = [], [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids: list[int] = []
        write: list[bool] = []
        for segment in template.render(prompt):
            on = segment.message is not None and prompt[segment.message].role in roles
            ids += segment.ids
            write += [on] * len(segment.ids)
        opening = template.generation_prompt(prompt)
        reply = (*template.tokenizer.encode(answer, add_special_tokens=False), template.tokenizer.eos_token_id)
        rows.append(torch.tensor([*ids, *opening, *reply]))
        writes.append(torch.tensor([*write, *[False] * (len(opening) + len(reply))]))
        lengths.append(len(reply))
    ids_padded, mask = _pad(rows, side="left")
    write_padded = pad_sequence(writes, batch_first=True, padding_side="left")
    keep = max(lengths) + 1
    targets = torch.cat([ids_padded[:, -keep + 1 :], torch.full((len(rows), 1), -100)], 1)
    for row, length in enumerate(lengths):
        targets[row, : keep - 1 - length] = -100
    return AnswerRows(ids_padded, mask, write_padded, targets)


def _pad(rows: Sequence[Tensor], *, side: str) -> tuple[Tensor, Tensor]:
    ids = pad_sequence(list(rows), batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones_like(r) for r in rows], batch_first=True, padding_side=side)
    return ids, mask
