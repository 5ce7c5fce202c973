"""Decoding: sampling with transformers' own logits processors, stop strings, streaming, cancellation."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.generation.options import GenerationOptions
from deltamem_agents.generation.rows import Batch, Row, can_batch

FinishReason = Literal["stop", "length", "cancelled"]


class Sampler:
    """Chooses tokens by the options of one generation."""

    def __init__(self, options: GenerationOptions, device: torch.device) -> None:
        self.processors = LogitsProcessorList()
        if options.repetition_penalty is not None and options.repetition_penalty != 1.0:
            self.processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
        self.greedy = not options.temperature
        if options.temperature:
            self.processors.append(TemperatureLogitsWarper(float(options.temperature)))
            if options.top_k is not None:
                self.processors.append(TopKLogitsWarper(options.top_k))
            if options.top_p is not None:
                self.processors.append(TopPLogitsWarper(options.top_p))
        self.generator = torch.Generator(device)
        if options.seed is not None:
            self.generator.manual_seed(options.seed)
        else:
            self.generator.seed()

    def choose(self, ids: Sequence[int], logits: Tensor) -> int:
        """The next token after `ids`, from logits [V]."""
        if self.processors:
            seen = cast("torch.LongTensor", torch.tensor([ids], device=logits.device))
            logits = self.processors(seen, logits.unsqueeze(0))[0]
        if self.greedy:
            return int(logits.argmax())
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self.generator))


class TextStream:
    """Turns tokens into text as they come: holds back unfinished characters and what may become a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False
        self._sent = 0

    def push(self, token: int) -> str:
        """Adds a token; the text that can be shown now."""
        self.ids.append(token)
        text = str(self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        found = [at for s in self.stop if (at := text.find(s)) >= 0]
        if found:
            self.text, self.stopped = text[: min(found)], True
            return self._release(len(self.text))
        self.text = text
        held = 0
        if text.endswith("\ufffd"):
            held = len(text) - len(text.rstrip("\ufffd"))
        for s in self.stop:
            held = max(held, next((n for n in range(min(len(s), len(text)), 0, -1) if text.endswith(s[:n])), 0))
        return self._release(len(text) - held)

    def finish(self) -> str:
        """What was held back and turns out to be text."""
        return self._release(len(self.text))

    def _release(self, end: int) -> str:
        start, self._sent = self._sent, max(self._sent, end)
        return self.text[start:end]


@dataclass(slots=True)
class Lane:
    """One generation on its way: a row, its options, and where its text goes."""

    row: Row
    logits: Tensor
    """float32 [V], after the last token of the row."""
    options: GenerationOptions
    stream: TextStream
    write: bool
    """Whether generated tokens are written into the memory as they pass."""
    emit: Callable[[str], None]
    """Called with each new piece of text."""
    cancelled: Callable[[], bool]
    """Asked before each token."""
    sampler: Sampler = field(init=False)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        """Makes the sampler."""
        self.sampler = Sampler(self.options, self.logits.device)

    def advance(self, ids: Sequence[int], logits: Tensor, ends: Collection[int]) -> int | None:
        """Chooses a token after `ids`; None when the generation is over."""
        if self.cancelled():
            self.finish_reason = "cancelled"
            return None
        token = self.sampler.choose(ids, logits)
        if token in ends:
            self.finish_reason = "stop"
        else:
            self._show(self.stream.push(token))
            if self.stream.stopped:
                self.finish_reason = "stop"
            elif len(self.stream.ids) >= self.options.max_new_tokens:
                self.finish_reason = "length"
        if self.finish_reason is None:
            return token
        self._show(self.stream.finish())
        return None

    def _show(self, text: str) -> None:
        if text:
            self.emit(text)


def decode(model: DeltaMemModel, lanes: Sequence[Lane], ends: Collection[int]) -> None:
    """Decodes all lanes to their end, together where their caches allow it.

    Each lane's row then holds all generated tokens but the last: a token is fed only to choose the next one.

    Args:
        model: the model.
        lanes: the generations; each is finished in place.
        ends: token ids that end a reply.
    """
    if len(lanes) > 1 and not can_batch([lane.row for lane in lanes]):
        for lane in lanes:
            decode(model, [lane], ends)
        return
    running = list(lanes)
    batch = Batch(model, [lane.row for lane in running])
    logits: Sequence[Tensor] | Tensor = [lane.logits for lane in running]
    while running:
        tokens = [lane.advance(ids, row, ends) for lane, ids, row in zip(running, batch.ids, logits, strict=True)]
        on = [index for index, token in enumerate(tokens) if token is not None]
        for index, lane in enumerate(running):
            if tokens[index] is None:
                lane.row = batch.row(index)
        if not on:
            return
        batch.keep(on)
        running = [running[index] for index in on]
        logits = batch.step([token for token in tokens if token is not None], [lane.write for lane in running])
