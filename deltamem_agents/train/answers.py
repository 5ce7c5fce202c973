"""Question-and-answer rows: prompts with their answers, and which positions count."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deltamem_agents.adapter import DeltaMemModel, DeltaMemOutput
from deltamem_agents.backbone.load import context_length
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.errors import TrainingError
from deltamem_agents.messages import Message
from deltamem_agents.state import MemoryState


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

    def to(self, device: torch.device) -> "AnswerRows":
        """The same rows on another device."""
        return AnswerRows(*(x.to(device) for x in (self.ids, self.mask, self.write, self.targets)))


def answer_rows(
    template: ChatTemplate,
    prompts: Sequence[Sequence[Message]],
    answers: Sequence[str],
    *,
    roles: Sequence[str],
    bare: bool = False,
) -> AnswerRows:
    """Rows of prompt, generation prompt and answer; answers end with the template's end of message.

    Args:
        template: renders them.
        prompts: messages, one prompt a row.
        answers: one a row.
        roles: whose messages are written as they pass.
        bare: leave out what the template adds before the first message: a default system prompt costs a third of a
            short row.
    """
    rows, writes, lengths = [], [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids: list[int] = []
        write: list[bool] = []
        for segment in template.render(prompt):
            if bare and segment.message is None:
                continue
            on = segment.message is not None and prompt[segment.message].role in roles
            ids += segment.ids
            write += [on] * len(segment.ids)
        opening = template.generation_prompt(prompt)
        reply = (*template.tokenizer.encode(answer, add_special_tokens=False), template.tokenizer.eos_token_id)
        rows.append(torch.tensor([*ids, *opening, *reply]))
        writes.append(torch.tensor([*write, *[False] * (len(opening) + len(reply))]))
        lengths.append(len(reply))
    ids_padded = pad_sequence(rows, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(r) for r in rows], batch_first=True, padding_side="left")
    write_padded = pad_sequence(writes, batch_first=True, padding_side="left")
    keep = max(lengths) + 1
    targets = torch.cat([ids_padded[:, -keep + 1 :], torch.full((len(rows), 1), -100)], 1)
    for row, length in enumerate(lengths):
        targets[row, : keep - 1 - length] = -100
    return AnswerRows(ids_padded, mask, write_padded, targets)


def answer_logits(model: DeltaMemModel, rows: AnswerRows, state: MemoryState | None) -> Tensor:
    """Float32 logits [B, A + 1, V] at the answers, from `state`; None: of the frozen backbone, without a memory.

    Adapters that write spans only read here: their question would be written by a forward of its own.

    Raises:
        TrainingError: a row is longer than the backbone's context.
    """
    tokens, limit = rows.ids.shape[1], context_length(model.backbone)
    if tokens > limit:
        raise TrainingError(
            f"a prompt with its answer has {tokens} tokens, the backbone attends to {limit}: shorten the window "
            "of that episode, or move messages to earlier"
        )
    keep = torch.arange(tokens - rows.targets.shape[1], tokens, device=rows.ids.device)
    if state is None:
        out = model.backbone(
            input_ids=rows.ids,
            attention_mask=rows.mask,
            position_ids=(rows.mask.cumsum(-1) - 1).clamp_min(0),
            logits_to_keep=keep,
            use_cache=False,
        )
        return torch.as_tensor(out.logits).float()
    write = False if model.adapter.config.spans else rows.write
    found: DeltaMemOutput = model(
        rows.ids, rows.mask, state=state, write=write, logits_to_keep=keep, use_cache=False
    )
    return found.logits.float()
