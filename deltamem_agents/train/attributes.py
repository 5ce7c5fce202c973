"""What a person can tell about themselves or somebody else: phrasings, read from `data/attributes/*.toml`.

An attribute may write all its phrasings out, or say what it is about as a `noun` ("my …") or a `clause` ("tell me …"),
whose usual ways of asking are then added to its own.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

Split = Literal["train", "test"]
NOT_TOLD = "I don't know, you haven't told me."
"""Said in the place of a value that was never told."""


@dataclass(frozen=True, slots=True)
class Phrasings:
    """Ways to say one thing; `{}` is the value, `{who}` another person."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    updates: tuple[str, ...] = ()
    """Statements that replace an older value."""
    negations: tuple[str, ...] = ()
    """Statements that rule a value out."""

    @property
    def unknown(self) -> str:
        """The answer when it was never told: the same up to the value, since only there a memory is asked for it."""
        return f"{self.answer.partition('{}')[0].rstrip()}… {NOT_TOLD}".removeprefix("… ")


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing a person can tell, with phrasings for training and others that never occur in it."""

    name: str
    area: str
    """The part of life it belongs to: the name of its file."""
    values: str
    """Where typical values come from: the name of a list in `facts.VALUES`, or one of `composed.COMPOSED`."""
    train: Phrasings
    test: Phrasings
    train_about: Phrasings | None
    """The same of another person; None where that is not asked."""
    test_about: Phrasings | None
    words: frozenset[str]
    """The words of all its phrasings, in lower case. A value among them would be said without being told."""

    def phrasings(self, split: Split, *, about: bool = False) -> Phrasings:
        """How `split` says it, of the speaker or `about` another person."""
        if not about:
            return self.train if split == "train" else self.test
        found = self.train_about if split == "train" else self.test_about
        if found is None:
            raise KeyError(f"{self.name} has no phrasings about another person")
        return found


_Entry = dict[str, object]
_LISTS = ("statements", "questions", "updates", "negations")
_USUAL: dict[str, dict[str, tuple[str, ...]]] = {
    "noun": {
        "statements": ("My {noun} is {{}}.", "Just so you know, my {noun} is {{}}.", "Note that my {noun} is {{}}."),
        "questions": (
            "{What} is my {noun}?", "Tell me my {noun}.", "Could you tell me my {noun}?", "Do you know my {noun}?",
            "Have I told you my {noun}?", "What did I say my {noun} is?", "Can you recall my {noun}?",
            "Do you still know my {noun}?", "Can you tell me my {noun}?",
        ),
        "updates": ("My {noun} is now {{}}.", "My {noun} is different now: {{}}."),
        "negations": ("My {noun} is not {{}}.",),
        "test_statements": ("FYI, my {noun} is {{}}.",),
        "test_questions": ("{What}'s my {noun}?", "Do you remember my {noun}?"),
        "test_updates": ("As of today, my {noun} is {{}}.",),
        "test_negations": ("{{}} isn't my {noun}.",),
    },
    "clause": {
        "questions": (
            "Tell me {clause}.", "Could you tell me {clause}?", "Do you know {clause}?", "Have I told you {clause}?",
            "Can you recall {clause}?", "Did I mention {clause}?", "Do you still know {clause}?",
        ),
        "test_questions": ("Do you remember {clause}?",),
    },
    "others": {
        "statements": ("{{who}}'s {noun} is {{}}.", "By the way, {{who}}'s {noun} is {{}}.",
                       "The {noun} of {{who}} is {{}}."),
        "questions": ("{What} is {{who}}'s {noun}?", "Tell me {{who}}'s {noun}.", "Do you know {{who}}'s {noun}?"),
        "test_statements": ("FYI, {{who}}'s {noun} is {{}}.",),
        "test_questions": ("{What}'s {{who}}'s {noun}?",),
    },
}  # fmt: skip
"""Ways of saying and asking that many attributes share."""
_OPENINGS = {"statements": ("By the way, ", "You should know: "), "test_statements": ("One more thing, ",)}
"""Put before an attribute's first statement."""
OPENINGS = ("By the way,", "You should know:", "Just so you know,", "Note that", "One more thing,", "FYI,")
"""How statements begin that have one."""
_OTHER_SIDE = {
    "i'm": "you are", "am": "are", "i": "you", "my": "your", "mine": "yours", "me": "you", "our": "your", "we": "you",
}  # fmt: skip
_SWAPPED = re.compile(r"\b(?:I'm|am|I|my|mine|me|our|we|you)\b", re.IGNORECASE)


def other_side(text: str) -> str:
    """What a speaker calls "my sister" is "your sister" to whoever answers."""

    def swap(found: re.Match[str]) -> str:
        word = found.group().lower()
        said = "I" if word == "you" else _OTHER_SIDE[word]
        return said.capitalize() if found.group()[0].isupper() and found.start() == 0 else said

    return _SWAPPED.sub(swap, text)


def after_opening(text: str, *names: str) -> str:
    """A sentence as it goes on behind an opening: "My dog…" is "my dog…"; "I…" and names stay."""
    keep = text.startswith(("I ", "I'", *filter(None, names)))
    return text if keep else text[0].lower() + text[1:]


def _completed(entry: _Entry) -> _Entry:
    """An entry with the usual phrasings of its noun or clause added, and an answer."""
    noun, clause = entry.get("noun"), entry.get("clause")
    if noun is None and clause is None:
        return entry
    what = entry.get("asked", "What")
    whole = dict(entry)
    for key, frames in _USUAL["noun" if noun else "clause"].items():
        whole[key] = [*_texts(entry, key), *(f.format(noun=noun, clause=clause, What=what) for f in frames)]
    first = {key: _texts(entry, key)[0] for key in _OPENINGS}
    for key, openings in _OPENINGS.items():
        if not first[key].startswith(("{}", "As ", "If ", "For ")):
            whole[key] = [*_texts(whole, key), *(opening + after_opening(first[key]) for opening in openings)]
    whole.setdefault("answer", f"Your {noun} is {{}}.")
    if entry.get("others"):
        about = {key: [f.format(noun=noun, What=what) for f in frames] for key, frames in _USUAL["others"].items()}
        whole["about"] = about | {"answer": f"{{who}}'s {noun} is {{}}."}
    return whole


def _texts(entry: Mapping[str, object], key: str) -> tuple[str, ...]:
    found = entry.get(key, ())
    assert isinstance(found, list | tuple)
    return tuple(map(str, found))


def _phrasings(entry: Mapping[str, object], prefix: str) -> Phrasings:
    statements, questions, updates, negations = (_texts(entry, prefix + key) for key in _LISTS)
    return Phrasings(statements, questions, str(entry["answer"]), updates, negations)


def _words(ways: Iterable[Phrasings | None]) -> frozenset[str]:
    texts = [t for w in ways if w for t in (*w.statements, *w.questions, *w.updates, *w.negations, w.answer, w.unknown)]
    return words_of(" ".join(texts))


def words_of(text: str) -> frozenset[str]:
    """The words and numbers of a text, in lower case."""
    return frozenset(re.findall(r"\w+", text.lower()))


@cache
def _load() -> tuple[tuple[Attribute, ...], tuple[Attribute, ...]]:
    folder = files("deltamem_agents.train") / "data" / "attributes"
    known: list[Attribute] = []
    held_out: list[Attribute] = []
    for file in sorted(folder.iterdir(), key=lambda file: (file.name != "basics.toml", file.name)):
        for entry in map(_completed, tomllib.loads(file.read_text(encoding="utf-8"))["attribute"]):
            about = entry.get("about")
            assert about is None or isinstance(about, dict)
            train, test = _phrasings(entry, ""), _phrasings(entry, "test_")
            others, tested = (_phrasings(about, ""), _phrasings(about, "test_")) if about else (None, None)
            area = file.name.removesuffix(".toml")
            words = _words((train, test, others, tested))
            name, values = str(entry["name"]), str(entry["values"])
            attribute = Attribute(name, area, values, train, test, others, tested, words)
            (held_out if entry.get("held_out") else known).append(attribute)
    return tuple(known), tuple(held_out)


ATTRIBUTES, HELD_OUT_ATTRIBUTES = _load()
"""Attributes that training uses, and whole attributes that never occur in it."""

_KINDS = (
    ("person", "pet", "surname", "fullname"), ("city", "country", "street", "venue", "spot", "seat"),
    ("date", "weekday", "month"), ("number", "code", "count", "age", "ordinal", "size", "phone"),
    ("food", "fruit", "drink", "dessert", "flavor", "diet"), ("project", "word", "host", "file", "title"),
    ("company", "department", "database", "system", "software", "editor", "proglang", "language"),
)  # fmt: skip
FAMILIES: dict[str, tuple[Attribute, ...]] = {
    kind: tuple(a for a in ATTRIBUTES if a.values in next((kinds for kinds in _KINDS if kind in kinds), (kind,)))
    for kind in {a.values for a in ATTRIBUTES}
}
"""The attributes of training whose values are easily taken for those of a kind: names, places, dates, …"""
