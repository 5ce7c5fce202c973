"""What the engine must come to, in the plainest way: no KV cache, no store, one forward over the whole window."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch

from deltamem_agents import DeltaMemModel, MemoryState, Message
from tests.builders import warm
from tests.chat import DEFAULT_SYSTEM, byte_tokenizer

Part = tuple[list[int], bool]
"""Tokens of one message, and whether they are written."""
Warm = dict[str, object]
"""What a forward goes on from."""


def encode(text: str) -> list[int]:
    return list(byte_tokenizer().encode(text, add_special_tokens=False))


def message_ids(message: Message) -> list[int]:
    return encode(f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n")


def naive_sentences(ids: Sequence[int]) -> list[int]:
    """A sentence ends with a line break, or with . ! ? before a blank."""
    text = [byte_tokenizer().decode([i]) for i in ids]
    spans, number = [], 0
    for here, following in zip(text, [*text[1:], ""], strict=True):
        spans.append(number)
        number += here.endswith("\n") or (here[-1:] in (".", "!", "?") and following[:1].isspace())
    return spans


def spans_of(ids: Sequence[int], granularity: str) -> list[int]:
    return [0] * len(ids) if granularity == "message_mean" else naive_sentences(ids)


def naive_state(model: DeltaMemModel, state: MemoryState, parts: Sequence[Part]) -> MemoryState:
    """Replays messages from a state."""
    return naive_feed(model, parts, {"state": state})["state"]


def naive_feed(model: DeltaMemModel, parts: Sequence[Part], before: Warm) -> Warm:
    """Token writes in one forward, span writes in a forward per message."""
    granularity = model.adapter.config.write_granularity
    with torch.no_grad():
        if granularity == "token":
            ids = [i for part, _ in parts for i in part]
            mask = [on for part, on in parts for _ in part]
            return warm(model(torch.tensor([ids]), write=torch.tensor([mask]), **before))
        for ids, on in parts:
            spans = torch.tensor([spans_of(ids, granularity)]) if on else None
            before = warm(model(torch.tensor([ids]), write=on, spans=spans, **before))
        return before


def naive_reply(model: DeltaMemModel, state: MemoryState, parts: Sequence[Part], *, most: int) -> str:
    """Greedy decoding that runs everything again for each token; a span write waits until the reply is over."""
    config = model.adapter.config
    writes = "assistant" in config.absorb_roles and config.write_granularity == "token"
    opening, reply = encode("<|im_start|>assistant\n"), list[int]()
    before: Warm = {"state": state}
    read = list[Part](parts)
    if config.write_granularity != "token":  # each message read the state of its own time: only the cache still knows
        before, read = naive_feed(model, parts, before), []
    with torch.no_grad():
        while len(reply) < most:
            fed = [*read, (opening + reply, writes)]
            ids = [i for part, _ in fed for i in part]
            mask = [on for part, on in fed for _ in part]
            out = model(torch.tensor([ids]), write=torch.tensor([mask]), **deepcopy(before))
            token = int(out.logits[0, -1].argmax())
            if token == byte_tokenizer().eos_token_id:
                break
            reply.append(token)
    return str(byte_tokenizer().decode(reply, skip_special_tokens=True))


@dataclass
class NaiveTurn:
    """What a turn added, and the state after it."""

    thread: str
    messages: list[Message]
    state: MemoryState


@dataclass
class NaiveSession:
    """A session by the one rule: turns of one or more threads, and the state after each."""

    model: DeltaMemModel
    recent: int
    turns: list[NaiveTurn] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        return [message for turn in self.turns for message in turn.messages]

    @property
    def state(self) -> MemoryState:
        return self.turns[-1].state if self.turns else self.model.zero_state()

    def window(self, thread: str, new: Sequence[Message]) -> tuple[list[Message], MemoryState, list[Message]]:
        """What a thread shows unwritten, the state after that, and what is replayed on it.

        The window starts at the last turn boundary of the thread that leaves at least `recent` of its messages, in
        blocks of `recent`. It is replayed as far back as no other thread has written.
        """
        own = [turn for turn in self.turns if turn.thread == thread]
        count = sum(len(turn.messages) for turn in own)
        first = count if self.recent == 0 else max(0, (count // self.recent - 1) * self.recent)
        ends = [sum(len(turn.messages) for turn in own[: n + 1]) for n in range(len(own))]
        begin = sum(end <= first for end in ends)
        while begin and [m.role for m in [*(m for turn in own[begin:] for m in turn.messages), *new]][:1] == ["tool"]:
            begin -= 1
        visible = own[begin:]
        last = len(self.turns)
        while last and visible and self.turns[last - 1] is visible[-1]:
            visible, last = visible[:-1], last - 1
        shown = [m for turn in visible for m in turn.messages]
        replayed = [m for turn in self.turns[last:] for m in turn.messages]
        return shown, self.turns[last - 1].state if last else self.model.zero_state(), replayed

    def turn(
        self,
        new: Sequence[Message],
        *,
        shown: Sequence[Message] = (),
        most: int = 0,
        reply: str | None = None,
        thread: str = "",
    ) -> str:
        """Takes new messages and replies; `reply` dictates it."""
        earlier, state, replayed = self.window(thread, new)
        shown = [*shown, *earlier]
        parts = self._parts(shown, [*replayed, *new])
        if reply is None:
            reply = naive_reply(self.model, state, parts, most=most)
        answer = Message(role="assistant", content=reply)
        after = naive_state(self.model, state, self._parts(shown, [*replayed, *new, answer]))
        self.turns.append(NaiveTurn(thread, [*new, answer], after))
        return reply

    def absorb(self, new: Sequence[Message], *, thread: str = "") -> None:
        earlier, state, replayed = self.window(thread, new)
        after = naive_state(self.model, state, self._parts(earlier, [*replayed, *new]))
        self.turns.append(NaiveTurn(thread, list(new), after))

    def _parts(self, shown: Sequence[Message], spoken: Sequence[Message]) -> list[Part]:
        roles = self.model.adapter.config.absorb_roles
        parts = [(message_ids(m), False) for m in shown]
        if [*shown, *spoken][0].role != "system":
            parts.insert(0, (message_ids(Message(role="system", content=DEFAULT_SYSTEM)), False))
        return parts + [(message_ids(m), m.role in roles) for m in spoken]
