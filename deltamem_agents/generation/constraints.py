"""Constraints: which tokens a reply may go on with, so that what comes out can be parsed."""

import json
import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deltamem_agents.backbone.calls import CallSyntax
from deltamem_agents.backbone.schemas import json_expression, schema_error
from deltamem_agents.backbone.tools import ToolUse
from deltamem_agents.errors import ConfigError, GenerationError
from deltamem_agents.generation.formats import ResponseFormat

MARGIN = 64
"""From how many tokens before the end, beyond twice what the shortest reply takes, room for closing is looked after."""
LONGEST = 255
"""The shortest string by a pattern is looked for up to this length."""


def reply_grammar(format: ResponseFormat | None, use: ToolUse, syntax: CallSyntax) -> str | None:
    """The grammar of a reply, for llguidance; None where anything goes.

    - A forced choice: one call, and nothing else.
    - A format and no tools: text of that format. With tools that may be called: that, or calls.
    - Tools that may be called: free text, in which the syntax's trigger opens a call. From there on it must be a valid
      one, and only more calls may follow it.

    Raises:
        ConfigError: calls that are bare JSON cannot be told from a format, where the model decides between them.
    """
    if not use.callable:
        return None if format is None else f"%llguidance {{}}\nstart: {format.lark}\n"
    rules = [f"body: ({' | '.join(f'tool_{n}' for n in range(len(use.callable)))}) {_quoted(syntax.closing)}"]
    for number, tool in enumerate(use.callable):
        arguments = json_expression(tool.parameters, lenient=True)
        rules.append(f"tool_{number}: {_quoted(tool.name + syntax.middle)} {arguments}")
    several = use.parallel and syntax.between is not None
    more = f" ({_quoted((syntax.between or '') + syntax.opening)} body)*" if several else ""
    if use.choice == "required":
        rules.append(f"start: {_quoted(syntax.opening)} body")
    elif format is not None:
        if syntax.trigger.startswith("{"):
            raise ConfigError(
                "a response format together with tools that may be called: this model's calls are bare JSON and cannot "
                "be told from such a reply; force a call, choose 'none', or leave the format out"
            )
        rules += [f"start: reply | {_quoted(syntax.opening)} body{more}", f"reply: {format.lark}"]
    else:
        rest = syntax.opening.partition(syntax.trigger)[2]
        rules += [f"start: TEXT | opened {_quoted(rest)} body{more}", r"TEXT: /(.|\n)*/"]
        rules.append(f"opened[lazy]: TEXT {_quoted(syntax.trigger)}")
    return "\n".join(["%llguidance {}", *reversed(rules), ""])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True, eq=False)
class _Vocabulary:
    """A tokenizer as llguidance sees it."""

    table: LLTokenizer
    shortest: dict[tuple[str, str], str] = field(default_factory=dict)
    """The shortest strings by patterns and formats that have occurred."""

    def next_out(self, allowed: NDArray[np.bool_]) -> int:
        """The token that brings JSON nearest to its end. Where a letter could be, it is inside a string."""
        order = self._out_of_a_string if self._letter is not None and allowed[self._letter] else self._out
        return int(order[allowed[order].argmax()])

    def closes(self, token: int) -> bool:
        """Whether a token closes a string, an array or an object."""
        return self._texts[token][:1] in (b'"', b"]", b"}")

    @cached_property
    def _texts(self) -> list[bytes]:
        return [self.table.decode_bytes([token]) for token in range(self.table.vocab_size)]

    @cached_property
    def _letter(self) -> int | None:
        return self._texts.index(b"q") if b"q" in self._texts else None

    @cached_property
    def _out(self) -> NDArray[np.int64]:
        """Closing brackets and quotes first, then long tokens."""
        return self._ordered(b'}]"')

    @cached_property
    def _out_of_a_string(self) -> NDArray[np.int64]:
        return self._ordered(b'"')

    def _ordered(self, first: bytes) -> NDArray[np.int64]:
        def rank(token: int) -> tuple[int, int, bool]:
            text = self._texts[token]
            closes = bool(text) and text[:1] in first and not text.strip(b'}]",: ')
            return first.find(text[:1]) if closes else len(first), -len(text), text == b"-"

        return np.array(sorted(range(len(self._texts)), key=rank))


_vocabularies: WeakKeyDictionary[PreTrainedTokenizerBase, dict[frozenset[int], _Vocabulary]] = WeakKeyDictionary()


def constrain(tokenizer: PreTrainedTokenizerBase, ends: Collection[int], grammar: str) -> "Constraint":
    """A constraint for one reply.

    Args:
        tokenizer: a fast one. What llguidance needs of it is made once, which can take a second.
        ends: token ids that end a reply.
        grammar: from `reply_grammar`.

    Raises:
        ConfigError: the grammar cannot be used, or the tokenizer is no fast one.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        found = type(tokenizer).__name__
        raise ConfigError(f"tools and response formats need a fast tokenizer, one with a tokenizer.json, got {found}")
    known = _vocabularies.setdefault(tokenizer, {})
    if (key := frozenset(ends)) not in known:
        known[key] = _Vocabulary(from_tokenizer(tokenizer, eos_token=sorted(key) or None))
    matcher = LLMatcher(known[key].table, grammar, log_level=0)
    if matcher.is_error():
        raise ConfigError(f"the reply cannot be held to its format or tools: {matcher.get_error()}")
    return Constraint(matcher, known[key], _endings(known[key], grammar))


def _endings(vocabulary: "_Vocabulary", grammar: str) -> list[list[int]]:
    """How strings with a pattern or format in a grammar may end: what the shortest one ends in, shorter ones first.

    A string that must still hold an "@" somewhere can go on for ever, whichever token is taken next.
    """
    found = dict.fromkeys(re.findall(r'"(pattern|format)": ("(?:[^"\\]|\\.)*")', grammar))
    shortest = (_shortest(vocabulary, keyword, json.loads(value)) for keyword, value in found)
    ends = dict.fromkeys(text[at:] for text in shortest for at in range(1, len(text)))
    return [vocabulary.table.tokenize_str(end) for end in sorted(ends, key=len)]


def _shortest(vocabulary: "_Vocabulary", keyword: str, value: str) -> str:
    """The shortest string by a pattern or format, as JSON; empty if it is longer than `LONGEST` or there is none."""
    if (known := vocabulary.shortest.get((keyword, value))) is not None:
        return known
    string: dict[str, JsonValue] = {"type": "string", keyword: value}
    lengths = range(LONGEST + 1)
    least = bisect_left(lengths, True, key=lambda most: not schema_error({**string, "maxLength": most}, lenient=True))
    found = ""
    if least in lengths:
        grammar = f"%llguidance {{}}\nstart: {json_expression({**string, 'maxLength': least}, lenient=True)}\n"
        bounded = Constraint(LLMatcher(vocabulary.table, grammar, log_level=0), vocabulary)
        found = vocabulary.table.decode_bytes(bounded.way_out(room=8 * LONGEST) or []).decode()
    vocabulary.shortest[keyword, value] = found
    return found


class Constraint:
    """Holds one reply to a grammar: ask `mask` before a token is chosen, tell `take` which one it was.

    A reply that is about to run out of tokens in the middle of JSON is brought to its end, by the shortest way that
    a plain search finds: it is cut short, but it can be parsed.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: _Vocabulary, endings: Sequence[list[int]] = ()) -> None:
        self._matcher, self._vocabulary, self._endings = matcher, vocabulary, endings
        self._plan: list[int] | None = None
        self._near = 0
        self.cut_short = False
        """Whether the reply was brought to its end for want of room."""

    def way_out(self, *, room: int) -> list[int] | None:
        """Tokens that end the reply from here; none where it may end already; None if no way in `room` is found."""
        return self._way_out(self._matcher, room)

    @property
    def may_stop(self) -> bool:
        """Whether the reply could end here."""
        return bool(self._matcher.is_accepting())

    @property
    def must_stop(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def mask(self, logits: Tensor) -> Tensor:
        """Logits [V] with −∞ for tokens that cannot come next; ids that the tokenizer doesn't have never can."""
        allowed = torch.zeros(logits.shape[-1], dtype=torch.bool)
        found = torch.from_numpy(self._allowed(self._matcher))[: len(allowed)]
        allowed[: len(found)] = found
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def take(self, token: int, *, room: int) -> int | None:
        """Goes on by a token, unless that would leave no room to end the reply.

        Args:
            token: the token chosen; none that ends a reply.
            room: how many tokens may still be taken, this one included.

        Returns:
            The token taken: `token`, or the next one on the way to the end; None where the reply ends here instead.
        """
        if not self._near:
            self._near = MARGIN + 2 * len(self._way_out(self._matcher, room) or ())
        if room > self._near:
            self._consume(token)
            return token
        before = self._plan if self._plan is not None else self._way_out(self._matcher, room)
        after = self._matcher.deep_copy()
        after.consume_token(token)
        self._plan = before if self._ends_by(before, after, room - 1) else self._way_out(after, room - 1)
        if self._plan is None and before is not None:
            self.cut_short = True
            if not before:
                return None
            token, *self._plan = before
        self._consume(token)
        return token

    def _consume(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise GenerationError(f"the reply left its format or tools behind: {self._matcher.get_error()}")

    def _allowed(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        if matcher.is_error():
            raise GenerationError(f"the reply's format or tools are too much: {matcher.get_error()}")
        return bits[: self._vocabulary.table.vocab_size].astype(np.bool_)

    def _ends_by(self, way: list[int] | None, matcher: LLMatcher, room: int) -> bool:
        """Whether a way out that is known leads out from here, too: it often does, inside a string."""
        if way is None or len(way) > room:
            return False
        at = matcher.deep_copy()
        return at.try_consume_tokens(way) == len(way) and bool(at.is_accepting())

    def _way_out(self, matcher: LLMatcher, room: int) -> list[int] | None:
        """Tokens that end the reply from here; none where it may end already; None if no way in `room` is found."""
        way, at = list[int](), matcher.deep_copy()
        while not at.is_accepting():
            if len(way) >= room or at.is_stopped():
                return None
            token = self._vocabulary.next_out(self._allowed(at))
            step = [token] if self._vocabulary.closes(token) else self._ending(at) or [token]
            way += step
            at.consume_tokens(step)
        return way if len(way) <= room else None

    def _ending(self, matcher: LLMatcher) -> list[int]:
        """The end of a string with a pattern, if one is known that fits here."""
        fits = (end for end in self._endings if matcher.deep_copy().try_consume_tokens(end) == len(end))
        return next(fits, [])
