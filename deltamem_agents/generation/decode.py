"""Decoding: sampling with transformers' own logits processors, stop strings, streaming, cancellation."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from deltamem_agents.generation.compiled import hooked
from deltamem_agents.generation.constraints import Constraint
from deltamem_agents.generation.logprobs import TokenLogprob, token_logprob
from deltamem_agents.generation.options import GenerationOptions
from deltamem_agents.generation.rows import Batch, Row, can_batch
from deltamem_agents.generation.slots import SlotBatch, joined

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
    """Turns tokens into text as they come: holds back unfinished characters and what may become a stop string.

    Only a tail is decoded at each token: those whose text is not settled, behind the ones that were settled last. These
    keep the first token of a text from being taken for the first of all, which some tokenizers strip of its blank.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False
        self._sent = 0
        self._settled = 0  # characters of the text that no token to come can change
        self._context: list[int] = []
        self._undecided: list[int] = []

    def push(self, token: int) -> str:
        """Adds a token; the text that can be shown now."""
        self.ids.append(token)
        self._undecided.append(token)
        new = self._new_text()
        self.text = self.text[: self._settled] + new
        start = max(0, self._settled - max(map(len, self.stop), default=0))
        found = [at for s in self.stop if (at := self.text.find(s, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
            return self._release(len(self.text))
        held = len(new) - len(new.rstrip("\ufffd"))
        if new and not held:
            self._settled = len(self.text)
            self._context, self._undecided = self._undecided, []
        for s in self.stop:
            most = min(len(s), len(self.text))
            held = max(held, next((n for n in range(most, 0, -1) if self.text.endswith(s[:n])), 0))
        return self._release(len(self.text) - held)

    def finish(self) -> str:
        """What was held back and turns out to be text."""
        return self._release(len(self.text))

    def _new_text(self) -> str:
        known, both = self._decode(self._context), self._decode([*self._context, *self._undecided])
        if both.startswith(known):
            return both[len(known) :]
        # Some tokenizers decode bytes in a row as a whole, and give up on all of it when the last are no character
        # yet, or never: what has been shown stays.
        return self._decode(self._undecided)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

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
    constraint: Constraint | None = None
    """What the reply is held to; none: any text."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the tokens so far, where the options ask for them."""

    def __post_init__(self) -> None:
        """Makes the sampler."""
        self.sampler = Sampler(self.options, self.logits.device)

    def advance(self, ids: Sequence[int], logits: Tensor, ends: Collection[int]) -> int | None:
        """Chooses a token after `ids`; None when the generation is over."""
        if self.cancelled():
            self.finish_reason = "cancelled"
            return None
        allowed = logits
        if self.constraint is not None:
            allowed = self.constraint.mask(logits)
        elif self.options.no_repeat_ngram_size:
            allowed = _without_repeats(self.stream.ids, logits, self.options.no_repeat_ngram_size)
        chosen, token = self.sampler.choose(ids, allowed), None
        if chosen in ends:
            self.finish_reason = "stop"
        elif (token := self._take(chosen)) is None:
            self.finish_reason = "length"
        else:
            if (top := self.options.logprobs) is not None:
                self.logprobs.append(token_logprob(self.stream.tokenizer, logits, token, top=top))
            self._show(self.stream.push(token))
            if self.stream.stopped:
                self.finish_reason = "stop"
            elif self.constraint is not None and self.constraint.must_stop:
                self.finish_reason = "length" if self.constraint.cut_short else "stop"
            elif len(self.stream.ids) >= self.options.max_new_tokens:
                self.finish_reason = "length"
        if self.finish_reason is None:
            return token
        self._show(self.stream.finish())
        return None

    def _take(self, token: int) -> int | None:
        if self.constraint is None:
            return token
        return self.constraint.take(token, room=self.options.max_new_tokens - len(self.stream.ids))

    def _show(self, text: str) -> None:
        if text:
            self.emit(text)


def _without_repeats(reply: Sequence[int], logits: Tensor, size: int) -> Tensor:
    """Logits [V] without the tokens that would end a run of `size` tokens that the reply holds already.

    Not transformers' processor: that counts the prompt, too, and a reply may quote it.
    """
    tail = list(reply[len(reply) - size + 1 :])
    starts = range(len(reply) - size + 1)
    banned = [reply[at + size - 1] for at in starts if list(reply[at : at + size - 1]) == tail]
    if not banned:
        return logits
    return logits.index_fill(0, torch.tensor(banned, device=logits.device), float("-inf"))


Ended = tuple[Lane, BaseException | None]
"""A lane that has left the decoder, and what went wrong with it, if anything."""


class Decoder:
    """Lanes that decode together; they join and leave between steps.

    Lanes whose caches can be joined share their forwards; each of the others has one of its own in every step. An
    error in a forward ends all lanes in it, an error in a lane's own code that lane only. When a lane has ended, its
    row holds all generated tokens but the last: a token is fed only to choose the next one.

    Args:
        model: the model.
        ends: token ids that end a reply.
        compiled: whether compiled loops decode where they can.
    """

    def __init__(self, model: DeltaMemModel, ends: Collection[int], *, compiled: bool = True) -> None:
        self._model, self._ends, self._compiled = model, ends, compiled
        self._groups: list[_Group] = []
        self._ended: list[Ended] = []

    def add(self, lane: Lane) -> None:
        """Takes a lane in: chooses its first token, which the next step feeds."""
        token = self._choose(lane, lane.row.ids, lane.logits, lambda: lane.row)
        if token is None:
            return
        joinable = can_batch([lane.row])
        group = next((g for g in self._groups if joinable and g.joinable), None)
        if group is None:
            group = _Group(joinable)
            self._groups.append(group)
        group.lanes.append(lane)
        group.tokens.append(token)

    def step(self) -> list[Ended]:
        """Feeds every lane's token and chooses the next ones; gives the lanes that have ended since the last step."""
        for group in self._groups:
            self._advance(group)
        self._groups = [group for group in self._groups if group.lanes]
        ended, self._ended = self._ended, []
        return ended

    def _advance(self, group: "_Group") -> None:
        lanes = group.lanes
        try:
            batch, logits = group.feed(self._model, compiled=self._compiled)
        except BaseException as error:
            self._ended += [(lane, error) for lane in lanes]
            group.lanes = []
            return
        group.lanes, group.tokens, group.places = [], [], []
        for place, lane in enumerate(lanes):
            token = self._choose(lane, batch.ids[place], logits[place], partial(batch.row, place))
            if token is not None:
                group.lanes.append(lane)
                group.tokens.append(token)
                group.places.append(place)

    def _choose(self, lane: Lane, ids: Sequence[int], logits: Tensor, leave: Callable[[], Row]) -> int | None:
        """The lane's next token; None when it has ended, in one way or the other."""
        try:
            token = lane.advance(ids, logits, self._ends)
            if token is None:
                lane.row = leave()
                self._ended.append((lane, None))
            return token
        except BaseException as error:
            self._ended.append((lane, error))
            return None


@dataclass(slots=True)
class _Group:
    """Lanes that share their forwards, and the token that each has chosen."""

    joinable: bool
    lanes: list[Lane] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    batch: Batch | SlotBatch | None = None
    places: list[int] = field(default_factory=list)
    """Where the first lanes' rows are in the batch; the lanes after them have not joined it yet."""

    def feed(self, model: DeltaMemModel, *, compiled: bool) -> tuple[Batch | SlotBatch, Tensor]:
        """Feeds the tokens; the batch of just these lanes, and float32 logits [lanes, V]."""
        new = [lane.row for lane in self.lanes[len(self.places) :]]
        if self.batch is None:
            self.batch = joined(model, new, compiled=compiled)
        elif new or len(self.places) < len(self.batch) or (isinstance(self.batch, SlotBatch) and hooked(model)):
            self.batch = self.batch.reformed(self.places, new)
        return self.batch, self.batch.step(self.tokens, [lane.write for lane in self.lanes])


def decode(model: DeltaMemModel, lanes: Sequence[Lane], ends: Collection[int]) -> None:
    """Decodes lanes to their end, each finished in place; the first error of any is raised."""
    decoder, left = Decoder(model, ends), len(lanes)
    for lane in lanes:
        decoder.add(lane)
    while left:
        for _, error in decoder.step():
            left -= 1
            if error is not None:
                raise error
