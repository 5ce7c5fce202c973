"""Question-and-answer rows: prompts with their answers, and which positions count."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import CausalLMOutputWithPast

from deltamem_agents.adapter import DeltaMemModel, DeltaMemOutput
from deltamem_agents.backbone.load import context_length
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.errors import TrainingError
from deltamem_agents.messages import Message
from deltamem_agents.state import MemoryState
from deltamem_agents.train.features import buckets
from deltamem_agents.train.losses import IGNORED


@dataclass(frozen=True, slots=True)
class AnswerRows:
    """Prompts with their answers, left-padded so that all end together."""

    ids: Tensor
    """long [B, T]."""
    mask: Tensor
    """long [B, T]."""
    write: Tensor
    """bool [B, T]: the prompt tokens that are written as they pass, as they are in a conversation."""
    at: Tensor
    """long [B, A]: the positions whose predictions count; 0 where a row has fewer than others."""
    targets: Tensor
    """long [B, A]: what they should predict, −100 where nothing counts."""

    def to(self, device: torch.device) -> "AnswerRows":
        """The same rows on another device."""
        return AnswerRows(*(x.to(device) for x in (self.ids, self.mask, self.write, self.at, self.targets)))

    def alike(self) -> "list[tuple[Tensor, AnswerRows]]":
        """The same rows in groups of about one length, which need less padding, with their places, long [b]."""
        lengths = self.mask.sum(1).tolist()
        groups = []
        for places in buckets(lengths):
            at, cut = torch.tensor(places, device=self.ids.device), self.ids.shape[1] - max(lengths[i] for i in places)
            ids, mask, write = (x[at, cut:] for x in (self.ids, self.mask, self.write))
            groups.append((at, AnswerRows(ids, mask, write, (self.at[at] - cut).clamp_min(0), self.targets[at])))
        return groups

    def sampled(self, count: int, rng: random.Random) -> "tuple[AnswerRows, list[int]]":
        """The same rows with at most `count` of the positions that count, drawn at random, and which, ascending."""
        width = self.at.shape[1]
        kept = sorted(rng.sample(range(width), min(count, width)))
        return replace(self, at=self.at[:, kept], targets=self.targets[:, kept]), kept


def answer_rows(
    template: ChatTemplate,
    prompts: Sequence[Sequence[Message]],
    answers: Sequence[str],
    *,
    roles: Sequence[str],
    learnt: Sequence[Sequence[int]] | None = None,
    bare: bool = False,
) -> AnswerRows:
    """Rows of prompt, generation prompt and answer; answers count to the template's end of message.

    Args:
        template: renders them.
        prompts: messages, one prompt a row.
        answers: one a row.
        roles: whose messages are written as they pass.
        learnt: for each prompt, positions of replies in it that count like its answer; None: no others do.
        bare: leave out what the template adds before the first message: a default system prompt costs a third of a
            short row.
    """
    rows, writes, counts = [], [], []
    end = template.tokenizer.eos_token_id
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids: list[int] = []
        write: list[bool] = []
        count: list[int] = []
        opening = template.generation_prompt(prompt)
        for segment in template.render(prompt):
            if bare and segment.message is None:
                continue
            if learnt is not None and segment.message in learnt[number]:
                count += [len(ids) + place for place in _reply_in(segment.ids, opening, end)]
            on = segment.message is not None and prompt[segment.message].role in roles
            ids += segment.ids
            write += [on] * len(segment.ids)
        reply = (*template.tokenizer.encode(answer, add_special_tokens=False), end)
        ids += opening
        count += range(len(ids), len(ids) + len(reply))
        rows.append(torch.tensor([*ids, *reply]))
        writes.append(torch.tensor([*write, *[False] * (len(opening) + len(reply))]))
        counts.append(torch.tensor(count))
    return _padded(rows, writes, counts)


def prose_rows(template: ChatTemplate, texts: Sequence[str]) -> AnswerRows:
    """Rows of prose by itself, of which all tokens but the first count and none is written.

    Args:
        template: has the tokenizer.
        texts: of two tokens or more, one a row.
    """
    rows = [torch.tensor(template.tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    return _padded(
        rows, [torch.zeros_like(row, dtype=torch.bool) for row in rows], [torch.arange(1, len(row)) for row in rows]
    )


def _padded(rows: list[Tensor], writes: list[Tensor], counts: list[Tensor]) -> AnswerRows:
    """Rows of token ids, which of them are written, and the places of those that count."""
    padded = pad_sequence(rows, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(r) for r in rows], batch_first=True, padding_side="left")
    # a position predicts the token after it
    at = [c + padded.shape[1] - len(row) - 1 for c, row in zip(counts, rows, strict=True)]
    targets = [ids[a + 1] for ids, a in zip(padded, at, strict=True)]
    return AnswerRows(
        padded,
        mask,
        pad_sequence(writes, batch_first=True, padding_side="left"),
        pad_sequence(at, batch_first=True),
        pad_sequence(targets, batch_first=True, padding_value=IGNORED),
    )


def _reply_in(ids: Sequence[int], opening: Sequence[int], end: int) -> range:
    """The places of a reply, its end included, among the tokens of a past message."""
    if tuple(ids[: len(opening)]) != tuple(opening) or end not in ids:
        raise TrainingError(
            "the chat template does not render a past reply as it begins and ends a new one, so it cannot be learnt in "
            "a conversation: leave exchanges out of your episodes, and set questions to 1 in the stages"
        )
    return range(len(opening), len(ids) - list(ids)[::-1].index(end))


def answer_logits(model: DeltaMemModel, rows: AnswerRows, state: MemoryState | None) -> Tensor:
    """Float32 logits [B, A, V] at the answers, from `state`; None: of the frozen backbone, without a memory.

    Adapters that write spans only read here: their question would be written by a forward of its own.

    Raises:
        TrainingError: a row is longer than the backbone's context.
    """
    if state is None:
        return torch.as_tensor(_plain(model, rows).logits).float()
    groups = rows.alike()
    found = [answer_logits_and_gates(model, r, MemoryState(state.tensor[at]), gates=False)[0] for at, r in groups]
    return torch.cat(found)[torch.cat([at for at, _ in groups]).argsort()]


def answer_states(model: DeltaMemModel, rows: AnswerRows) -> Tensor:
    """What the frozen backbone's output layer is given at the answers, without a memory: [B, A, H]."""
    given: list[Tensor] = []
    head = model.backbone.get_output_embeddings()  # type: ignore[no-untyped-call]
    handle = head.register_forward_hook(lambda module, args, out: given.append(args[0]))
    try:
        _plain(model, rows)
    finally:
        handle.remove()
    return given[0]


def _plain(model: DeltaMemModel, rows: AnswerRows) -> CausalLMOutputWithPast:
    _check_length(model, rows)
    with _predictions_at(model, rows.at):
        return cast(
            "CausalLMOutputWithPast",
            model.backbone(
                input_ids=rows.ids,
                attention_mask=rows.mask,
                position_ids=(rows.mask.cumsum(-1) - 1).clamp_min(0),
                use_cache=False,
            ),
        )


def answer_logits_and_gates(
    model: DeltaMemModel, rows: AnswerRows, state: MemoryState, *, gates: bool = True
) -> tuple[Tensor, Tensor | None]:
    """`answer_logits`, and how far reads opened at each token: float32 [B, T, layers, N], None without read gates."""
    _check_length(model, rows)
    write = False if model.adapter.config.spans else rows.write
    with _predictions_at(model, rows.at):
        out: DeltaMemOutput = model(
            rows.ids, rows.mask, state=state, write=write, use_cache=False, read_gates=gates
        )
    return out.logits.float(), out.read_gates


def _check_length(model: DeltaMemModel, rows: AnswerRows) -> None:
    tokens, limit = rows.ids.shape[1], context_length(model.backbone)
    if tokens > limit:
        raise TrainingError(
            f"a prompt with its answer has {tokens} tokens, the backbone attends to {limit}: shorten the window "
            "of that episode, or move messages to earlier"
        )


@contextmanager
def _predictions_at(model: DeltaMemModel, at: Tensor) -> Iterator[None]:
    """Inside the block forwards give the logits of positions `at` alone: an output layer costs as much as ten others.

    transformers' `logits_to_keep` takes one set of positions for all rows; answers stand elsewhere in each.
    """

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].gather(1, at[:, :, None].expand(-1, -1, args[0].shape[-1])), *args[1:])

    head = model.backbone.get_output_embeddings()  # type: ignore[no-untyped-call]
    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
