"""Values that facts have: closed lists, an open vocabulary, made-up names, dates and numbers.

All but the lists and ages have a held-out part, which never occurs in training, not even inside another word: what no
training text contains as a string, none contains as a sequence of tokens, whatever the tokenizer.
"""

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from deltamem_agents.train.attributes import Attribute, Phrasings, Split

VALUES: dict[str, tuple[str, ...]] = {
    "person": tuple(
        "Anna Boris Carla David Elena Felix Greta Hugo Irene Jonas Klara Liam Maria Nora Oscar Paula Quentin Rosa "
        "Simon Tara Ulrich Vera Walter Xenia Yusuf Zoe Amir Bianca Cedric Dana Emil Fiona".split()
    ),
    "city": tuple(
        "Oslo Lisbon Vienna Prague Dublin Madrid Berlin Paris Rome Athens Cairo Lagos Nairobi Delhi Tokyo Seoul Sydney "
        "Boston Chicago Denver Seattle Toronto Lima Havana Zurich Geneva Warsaw Munich".split()
    ),
    "job": tuple(
        "teacher,nurse,farmer,lawyer,baker,pilot,painter,plumber,dentist,chemist,engineer,librarian,carpenter,"
        "journalist,butcher,florist,mechanic,musician,architect,translator".split(",")
    ),
    "pet": tuple(
        "Rex Bella Max Luna Charlie Milo Daisy Rocky Coco Buddy Simba Nala Toby Ruby Oreo Pepper Ginger Bruno Shadow "
        "Biscuit".split()
    ),
    "food": tuple(
        "pizza,sushi,pasta,curry,salad,soup,bread,cheese,chocolate,pancakes,tacos,noodles,rice,lasagna,dumplings,steak,"
        "mushrooms,strawberries".split(",")
    ),
    "color": (
        "red", "blue", "green", "yellow", "purple", "orange", "pink", "brown", "black", "white", "turquoise", "gray"
    ),
    "hobby": tuple(
        "painting,chess,fishing,cycling,gardening,swimming,climbing,dancing,cooking,photography,hiking,knitting,running,"
        "sailing,pottery,archery".split(",")
    ),
    "word": tuple(
        "apple,river,candle,mountain,falcon,garden,silver,thunder,window,pencil,bridge,castle,lantern,marble,ocean,"
        "rocket,tiger,violin,walnut,zebra".split(",")
    ),
    "drink": ("coffee", "tea", "milk", "water", "juice", "cocoa", "lemonade", "beer", "wine", "cider"),
    "instrument": ("piano", "guitar", "violin", "flute", "drums", "cello", "trumpet", "harp", "clarinet", "banjo"),
    "company": ("Siemens", "Toyota", "Nokia", "Philips", "Boeing", "Canon", "Lego", "Ikea", "Volvo", "Bosch", "Intel"),
}
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
GENERATED = ("date", "number", "age")
"""Kinds of values that are composed, not listed."""

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w x z".split()
_VOWELS = "a e i o u ai ee oa ou y".split()
_CODAS = "n r l s x k m nd rt lm th ck v sk".split()


def _held_out(text: str) -> bool:
    """A tenth of all texts, the same on every machine."""
    return zlib.crc32(text.encode()) % 10 == 0


_SYLLABLES: dict[Split, list[str]] = {"train": [], "test": []}
for _syllable in (onset + vowel for onset in _ONSETS for vowel in _VOWELS):
    _SYLLABLES["test" if _held_out(_syllable) else "train"].append(_syllable)


@dataclass(frozen=True, slots=True)
class Fact:
    """One attribute of the speaker, or of `who`, with its value."""

    attribute: Attribute
    value: str
    who: str | None = None

    def phrasings(self, split: Split) -> Phrasings:
        """How `split` says it."""
        return self.attribute.phrasings(split, about=self.who is not None)

    def say(self, template: str) -> str:
        """A phrasing with this fact's value and person."""
        return template.format(self.value, who=self.who)


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


class Values:
    """Draws values: from closed lists that training and test share, or open ones that they do not.

    Args:
        words: an open vocabulary; those held out, or that hold a held-out word, are left out of training.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.test_words = sorted(held_out_words())
        self.train_words = sorted(w for w in set(words) if not holds_held_out_word(w))
        self._training_text = " ".join(self.train_words)

    def draw(self, kind: str, rng: random.Random, *, split: Split, mix: ValueMix) -> str:
        """A value of `kind`: composed, or from the closed list, or with probability `open_share` an open one."""
        if kind in GENERATED:
            return _generate(kind, rng, split)
        if rng.random() >= mix.open_share:
            return rng.choice(VALUES[kind])
        word = self._made_up(rng, split) if rng.random() < mix.made_up else self._word(rng, split)
        proper = VALUES[kind][0][0].isupper()
        return word.capitalize() if proper and rng.random() < mix.capitals else word

    def other(self, kind: str, not_these: Sequence[str], rng: random.Random, *, split: Split, mix: ValueMix) -> str:
        """A value of `kind` that is none of `not_these`."""
        while (value := self.draw(kind, rng, split=split, mix=mix)).lower() in {v.lower() for v in not_these}:
            pass
        return value

    def _word(self, rng: random.Random, split: Split) -> str:
        words = self.test_words if split == "test" else self.train_words
        return rng.choice(words) if words else self._made_up(rng, split)

    def _made_up(self, rng: random.Random, split: Split) -> str:
        while True:
            word = made_up_word(rng, split)
            if split == "test" and word not in self._training_text:
                return word
            if split == "train" and not holds_held_out_word(word):
                return word


def _generate(kind: str, rng: random.Random, split: Split) -> str:
    if kind == "age":
        return str(rng.randint(18, 95))  # too few to hold some out
    while True:  # two digits always: "May 1" would be part of "May 14"
        value = f"{rng.choice(MONTHS)} {rng.randint(10, 28)}" if kind == "date" else str(rng.randint(1000, 9999))
        if _held_out(value) == (split == "test"):
            return value


def vocabulary_words(vocabulary: Sequence[str]) -> list[str]:
    """Whole lower-case English-looking words of a BPE vocabulary, which marks them with Ġ or ▁."""
    marked = (t[1:] for t in vocabulary if t.startswith(("Ġ", "▁")))
    return sorted({w.lower() for w in marked if w.isascii() and w.isalpha() and len(w) > 4})


def training_vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words that open values are drawn from, those of the closed lists left out."""
    closed = {v.lower() for values in VALUES.values() for v in values}
    return [w for w in vocabulary_words(list(tokenizer.get_vocab())) if w not in closed]
