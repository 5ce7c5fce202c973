"""What a person can tell about themselves or somebody else: phrasings, read from `data/attributes.toml`."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Phrasings:
    """Ways to say one thing; `{}` is the value, `{who}` another person."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    unknown: str
    """The answer when it was never told."""
    updates: tuple[str, ...] = ()
    """Statements that replace an older value."""
    negations: tuple[str, ...] = ()
    """Statements that rule a value out."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing a person can tell, with phrasings for training and others that never occur in it."""

    name: str
    values: str
    """Where typical values come from: the name of a list in `facts.VALUES`, or "date", "number" or "age"."""
    train: Phrasings
    test: Phrasings
    train_about: Phrasings | None
    """The same of another person; None where that is not asked."""
    test_about: Phrasings | None

    def phrasings(self, split: Split, *, about: bool = False) -> Phrasings:
        """How `split` says it, of the speaker or `about` another person."""
        if not about:
            return self.train if split == "train" else self.test
        found = self.train_about if split == "train" else self.test_about
        if found is None:
            raise KeyError(f"{self.name} has no phrasings about another person")
        return found


def _phrasings(entry: dict[str, object], prefix: str) -> Phrasings:
    def texts(key: str) -> tuple[str, ...]:
        found = entry.get(prefix + key, [])
        assert isinstance(found, list)
        return tuple(found)

    answer, unknown = str(entry["answer"]), str(entry["unknown"])
    return Phrasings(
        texts("statements"), texts("questions"), answer, unknown, texts("updates"), texts("negations")
    )


@cache
def _load() -> tuple[tuple[Attribute, ...], tuple[Attribute, ...]]:
    text = (files("deltamem_agents.train") / "data" / "attributes.toml").read_text(encoding="utf-8")
    known: list[Attribute] = []
    held_out: list[Attribute] = []
    for entry in tomllib.loads(text)["attribute"]:
        about = entry.get("about")
        attribute = Attribute(
            entry["name"],
            entry["values"],
            _phrasings(entry, ""),
            _phrasings(entry, "test_"),
            _phrasings(about, "") if about else None,
            _phrasings(about, "test_") if about else None,
        )
        (held_out if entry.get("held_out") else known).append(attribute)
    return tuple(known), tuple(held_out)


ATTRIBUTES, HELD_OUT_ATTRIBUTES = _load()
"""Attributes that training uses, and whole attributes that never occur in it."""
