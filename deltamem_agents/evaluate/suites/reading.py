"""Asking: one prefill per question, from which its right answer, its candidates and a free answer all come."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deltamem_agents.backbone.load import end_tokens
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.engine.prompts import PromptWriter
from deltamem_agents.generation import GenerationOptions, Lane, Piece, Row, TextStream, decode, feed
from deltamem_agents.messages import Message
from deltamem_agents.state import MemoryState

HELD_TOKENS = 16_384
"""So many tokens' keys and values are held at once, over the rows that decode or are scored together."""
TOGETHER = 16


@dataclass(frozen=True, slots=True)
class Asking:
    """One question as it is put to the model."""

    shown: tuple[Message, ...]
    """In front, never written."""
    spoken: tuple[Message, ...]
    """Written as they pass, where a memory is read: the window, and the question."""
    state: MemoryState | None
    """The memory before `spoken`; None: the frozen model."""
    texts: tuple[str, ...]
    """Answers whose likelihood is wanted."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model makes of a question."""

    answer: str
    """Its free greedy answer."""
    nats: tuple[float, ...]
    """Of each text, mean negative log-likelihood a token."""
    prompt_tokens: int
    seconds: float
    """Of the whole group, shared evenly: prompts with a common start share its prefill."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What stays of a question when its cache has gone."""

    stream: TextStream
    nats: tuple[float, ...]
    tokens: int
    """Of its prompt."""


class Reader:
    """Puts questions to an engine's model through the engine's own prompts. Call it on the model's thread."""

    def __init__(self, engine: DeltaMemEngine, writer: PromptWriter, *, answer_tokens: int) -> None:
        self._model, self._writer = engine.model, writer
        self._ends = end_tokens(engine.model.backbone, engine.tokenizer)
        self._options = GenerationOptions.parse({"max_new_tokens": answer_tokens})

    def read(self, groups: Sequence[Sequence[Asking]]) -> list[list[Reading]]:
        """Answers questions, those about one conversation as a group: what its prompts begin with is fed once."""
        start = time.perf_counter()
        asked: list[list[_Asked]] = [[] for _ in groups]
        waiting: list[Lane] = []
        for number, group in enumerate(groups):
            for one, lane in self._prefilled(group):
                asked[number].append(one)
                waiting.append(lane)
                longest = max(len(held.row.ids) for held in waiting)
                if longest * (len(waiting) + 1) > HELD_TOKENS or len(waiting) == TOGETHER:
                    decode(self._model, waiting, self._ends)
                    waiting = []
        decode(self._model, waiting, self._ends)
        seconds = (time.perf_counter() - start) / max(1, sum(map(len, groups)))
        return [[Reading(one.stream.text, one.nats, one.tokens, seconds) for one in group] for group in asked]

    def _prefilled(self, group: Sequence[Asking]) -> Iterator[tuple["_Asked", Lane]]:
        """Prompts with their likelihoods, each ready to be answered; one at a time, so that few caches are held."""
        prompts = [self._pieces(asking) for asking in group]
        shared = _shared(prompts, [asking.state for asking in group])
        trunk = feed(self._model, Row(self._state(group[0])), prompts[0][:shared])[0] if shared else None
        for asking, prompt in zip(group, prompts, strict=True):
            base = Row(self._state(asking)) if trunk is None else _branch(trunk)
            row, logits = feed(self._model, base, prompt[shared:])
            nats = self._likelihoods(row, logits, asking)
            lane = self._lane(row, logits, write=self._writes_replies(asking))
            yield _Asked(lane.stream, nats, sum(len(piece.ids) for piece in prompt)), lane

    def _pieces(self, asking: Asking) -> list[Piece]:
        write = asking.state is not None
        return list(self._writer.render(asking.shown, asking.spoken, write=write, opened=True).pieces)

    def _state(self, asking: Asking) -> MemoryState:
        return self._model.zero_state() if asking.state is None else asking.state

    def _writes_replies(self, asking: Asking) -> bool:
        return asking.state is not None and self._writer.writes_replies

    def _lane(self, row: Row, logits: Tensor, *, write: bool) -> Lane:
        stream = TextStream(self._writer.template.tokenizer, ())
        return Lane(row, logits, self._options, stream, write, lambda text: None, lambda: False)

    def _likelihoods(self, row: Row, logits: Tensor, asking: Asking) -> tuple[float, ...]:
        """Teacher forced, all texts that fit side by side; the end of the message is not counted."""
        ids = [self._writer.template.tokenizer.encode(text, add_special_tokens=False) for text in asking.texts]
        together = max(1, HELD_TOKENS // max(1, len(row.ids)))
        nats: list[float] = []
        for start in range(0, len(ids), together):
            nats += self._teacher_forced(row, logits, ids[start : start + together], asking)
        return tuple(nats)

    def _teacher_forced(self, row: Row, logits: Tensor, texts: Sequence[Sequence[int]], asking: Asking) -> list[float]:
        first = torch.log_softmax(logits.double(), -1)
        nats = [-float(first[ids[0]]) for ids in texts]
        longest = max(len(ids) for ids in texts) - 1  # the last token need not be fed
        if longest:
            device, past = self._model.device, len(row.ids)
            fed = torch.tensor([[*ids[:-1], *[0] * (longest - len(ids) + 1)] for ids in texts], device=device)
            mask = torch.ones(len(texts), past + longest, dtype=torch.long, device=device)
            for place, ids in enumerate(texts):
                mask[place, past + len(ids) - 1 :] = 0
            cache = _branch(row).cache
            assert cache is not None
            if len(texts) > 1:
                cache.batch_repeat_interleave(len(texts))
            state = row.state.rows([0] * len(texts))
            write = self._writes_replies(asking)
            carry = None if row.carry is None else row.carry.expand(len(texts), -1, -1)
            out = self._model(fed, mask, past_key_values=cache, state=state, write=write, carry=carry)
            after = torch.log_softmax(out.logits.double(), -1)
            for place, ids in enumerate(texts):
                nats[place] -= sum(float(after[place, at, token]) for at, token in enumerate(ids[1:]))
        return [total / len(ids) for total, ids in zip(nats, texts, strict=True)]


def _branch(row: Row) -> Row:
    """The row again, with a cache of its own: `feed` extends it in place."""
    return replace(row, cache=copy.deepcopy(row.cache))


def _shared(prompts: Sequence[Sequence[Piece]], states: Sequence[MemoryState | None]) -> int:
    """How many pieces all prompts begin with alike, short of a whole prompt; none if their states differ."""
    if len(prompts) < 2 or any(state is not states[0] for state in states):
        return 0
    shortest = min(len(prompt) for prompt in prompts) - 1
    alike = (len({prompt[at] for prompt in prompts}) == 1 for at in range(shortest))
    return next((at for at, same in enumerate(alike) if not same), shortest)
