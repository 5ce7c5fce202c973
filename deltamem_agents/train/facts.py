"""Values that facts have: closed lists, an open vocabulary, made-up names, and composed ones such as dates and codes.

All but the lists and ages have a held-out part, which never occurs in training, not even inside another word: what no
training text contains as a string, none contains as a sequence of tokens, whatever the tokenizer.
"""

import random
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import chain, count
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from deltamem_agents.train.attributes import (
    ATTRIBUTES,
    HELD_OUT_ATTRIBUTES,
    OPENINGS,
    Attribute,
    Phrasings,
    Split,
    other_side,
    words_of,
)
from deltamem_agents.train.composed import COMPOSED, compose, held_out

_LISTS = tomllib.loads((files("deltamem_agents.train") / "data" / "values.toml").read_text(encoding="utf-8"))
VALUES: dict[str, tuple[str, ...]] = {kind: tuple(found) for part in _LISTS.values() for kind, found in part.items()}
"""Typical values by kind."""
GENERATED = (*COMPOSED, *_LISTS["few"])
"""Kinds of values that open ones never take the place of: composed, or one of a few."""

TRIES = 300
"""Draws of a value that isn't taken, before a made-up word stands in."""

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w x z".split()
_VOWELS = "a e i o u ai ee oa ou y".split()
_CODAS = "n r l s x k m nd rt lm th ck v sk".split()


_SYLLABLES: dict[Split, list[str]] = {"train": [], "test": []}
for _syllable in (onset + vowel for onset in _ONSETS for vowel in _VOWELS):
    _SYLLABLES["test" if held_out(_syllable) else "train"].append(_syllable)


@dataclass(frozen=True, slots=True)
class Fact:
    """One attribute of the speaker, or of `who`, with its value."""

    attribute: Attribute
    value: str
    who: str | None = None

    @property
    def about(self) -> tuple[str, str | None]:
        """What it tells, and of whom: facts that share it rule each other out."""
        return self.attribute.name, self.who

    def phrasings(self, split: Split) -> Phrasings:
        """How `split` says it."""
        return self.attribute.phrasings(split, about=self.who is not None)

    def statement(self, rng: random.Random, split: Split, *, opening: bool = True) -> str:
        """One of the ways in which the user tells it, with a "By the way, " or the like before it only if `opening`."""
        ways = self.phrasings(split).statements
        if not opening:
            ways = tuple(way for way in ways if not way.startswith(OPENINGS)) or ways
        if self.who and self.who.startswith("my "):
            ways = tuple(way for way in ways if "friend" not in way)  # "my friend my sister" is nobody
        return self.say(rng.choice(ways))

    def say(self, template: str) -> str:
        """A phrasing with this fact's value and person, as the user says it."""
        return _sentence(template.format(self.value, who=self.who))

    def reply(self, template: str) -> str:
        """An answer with this fact's value and person: who is "my sister" to the user is "your sister" in it."""
        return _sentence(template.format(self.value, who=self.who and other_side(self.who)))


def _sentence(text: str) -> str:
    """A sentence begins with a capital, unless with a value as it is written."""
    return text[0].upper() + text[1:] if text.startswith(("my ", "your ")) else text


def made_up_word(rng: random.Random, split: Split = "train") -> str:
    """A pronounceable word nobody uses, of two or three syllables, those of training and test being different ones."""
    syllables = [rng.choice(_SYLLABLES[split]) for _ in range(rng.choice((2, 2, 3)))]
    return "".join(syllables) + rng.choice(_CODAS)


@cache
def held_out_words() -> frozenset[str]:
    """The words kept for testing, `data/held_out_words.txt`: lower case, five letters or more."""
    text = (files("deltamem_agents.train") / "data" / "held_out_words.txt").read_text(encoding="utf-8")
    return frozenset(text.split())


def holds_held_out_word(text: str) -> bool:
    """Whether a held-out word occurs in `text`, also inside a longer word, in any case."""
    starts = _by_start()
    return any(
        word.startswith(held, at)
        for word in re.findall(r"[a-z]{5,}", text.lower())
        for at in range(len(word) - 4)
        for held in starts.get(word[at : at + 5], ())
    )


@cache
def _by_start() -> dict[str, list[str]]:
    """Held-out words by their first five letters."""
    words: dict[str, list[str]] = {}
    for word in held_out_words():
        words.setdefault(word[:5], []).append(word)
    return words


class ValueMix(NamedTuple):
    """Where listed kinds of values are drawn from instead."""

    open_share: float = 0.0
    """Share from the open vocabulary, not from the closed lists."""
    made_up: float = 0.2
    """Share of open values that are made-up names."""
    capitals: float = 0.8
    """Share of open values that are capitalised where names are usual."""


@cache
def _said_words() -> frozenset[str]:
    """The words of all phrasings: no open value is one of them, or a question might show it."""
    return frozenset().union(*(attribute.words for attribute in (*ATTRIBUTES, *HELD_OUT_ATTRIBUTES)))


class Values:
    """Draws values: from closed lists that training and test share, or open ones that they do not.

    Args:
        words: an open vocabulary; those held out, or that hold a held-out word, are left out of training.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.test_words = sorted(held_out_words() - _said_words())
        self.train_words = sorted(w for w in set(words) - _said_words() if not holds_held_out_word(w))
        self._training_text = " ".join(self.train_words)

    def draw(self, kind: str, rng: random.Random, *, split: Split, mix: ValueMix) -> str:
        """A value of `kind`: composed, or from the closed list, or with probability `open_share` an open one.

        Where typical values consist of several words, an open word takes the place of one of them.
        """
        if kind in COMPOSED:
            return compose(kind, rng, split)
        if kind in GENERATED or rng.random() >= mix.open_share:
            return rng.choice(VALUES[kind])
        word = self._made_up(rng, split) if rng.random() < mix.made_up else self._word(rng, split)
        like = rng.choice(VALUES[kind])
        if not like.isalpha():
            found = _CONTENT_WORD.search(like) if like.islower() else rng.choice(list(_CONTENT_WORD.finditer(like)))
            assert found is not None, like
            return like[: found.start()] + (word if like.islower() else word.capitalize()) + like[found.end() :]
        proper = VALUES[kind][0][0].isupper()
        return word.capitalize() if proper and rng.random() < mix.capitals else word

    def other(
        self,
        kind: str,
        not_these: Sequence[str],
        rng: random.Random,
        *,
        split: Split,
        mix: ValueMix,
        said: Iterable[Attribute] = (),
    ) -> str:
        """A value of `kind` that neither is nor holds any of `not_these`, nor is held by one.

        Where all of a short list are taken, as of sizes, it is a made-up word.

        Args:
            kind: which.
            not_these: values that are taken.
            rng: draws it.
            split: training's values or those of the test.
            mix: how open values are.
            said: attributes that are spoken of; no phrasing of theirs shows the value.
        """
        taken = [words_of(value) for value in not_these]
        spoken = [attribute.words for attribute in said]

        def free(value: str) -> bool:
            words = words_of(value)
            return not any(words <= other or other <= words for other in taken) and not any(
                words <= other for other in spoken
            )

        drawn = (self.draw(kind, rng, split=split, mix=mix) for _ in range(TRIES))
        made_up = (self._made_up(rng, split) for _ in count())
        return next(value for value in chain(drawn, made_up) if free(value))

    def _word(self, rng: random.Random, split: Split) -> str:
        words = self.test_words if split == "test" else self.train_words
        return rng.choice(words) if words else self._made_up(rng, split)

    def _made_up(self, rng: random.Random, split: Split) -> str:
        while True:
            word = made_up_word(rng, split)
            if word in _said_words():
                continue
            if split == "test" and word not in self._training_text:
                return word
            if split == "train" and not holds_held_out_word(word):
                return word


_CONTENT_WORD = re.compile(r"\b(?!the\b|and\b)[a-z]{3,}", re.IGNORECASE)


def vocabulary_words(vocabulary: Sequence[str]) -> list[str]:
    """Whole lower-case English-looking words of a BPE vocabulary, which marks them with Ġ or ▁."""
    marked = (t[1:] for t in vocabulary if t.startswith(("Ġ", "▁")))
    return sorted({w.lower() for w in marked if w.isascii() and w.isalpha() and len(w) > 4})


def training_vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words that open values are drawn from, those of the closed lists left out."""
    closed = {v.lower() for values in VALUES.values() for v in values}
    return [w for w in vocabulary_words(list(tokenizer.get_vocab())) if w not in closed]
