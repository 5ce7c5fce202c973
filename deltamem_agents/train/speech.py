"""How facts are put into messages beside their own phrasings: two in one sentence, corrections, a list of all."""

import random
from collections.abc import Sequence

from deltamem_agents.train.attributes import Split, after_opening
from deltamem_agents.train.facts import Fact

CORRECTIONS: dict[Split, tuple[str, ...]] = {
    "train": ("Actually, {}", "Correction: {}", "That has changed: {}", "Update: {}", "Not any more: {}",
              "Sorry, I was wrong, {}", "Things are different now: {}", "Scratch that, {}", "No wait, {}",
              "Forget what I said before: {}", "I made a mistake earlier, {}", "Oops, {}", "Change of plan: {}",
              "I mixed that up, {}", "Hold on, {}", "It's not like that any more: {}", "Small update: {}"),
    "test": ("I have news: {}", "Let me correct that: {}", "My mistake, {}"),
}  # fmt: skip
OLD_NAMED: dict[Split, tuple[str, ...]] = {
    "train": ("Not {old}, that was wrong: {new}", "I said {old} before, but {new}", "Forget {old}, {new}",
              "It used to be {old}, but {new}", "{old} is out of date, {new}", "No longer {old}: {new}"),
    "test": ("Earlier I told you {old}, now {new}", "Please replace {old}: {new}"),
}  # fmt: skip
"""Corrections that name the old value."""
_JOINTS: dict[Split, tuple[str, ...]] = {
    "train": (" and ", ", and ", "; ", ", and by the way ", ", also ", ", oh and "),
    "test": (", plus ", " and also "),
}
LISTED: dict[Split, tuple[str, ...]] = {
    "train": ("What have I told you about myself?", "Tell me what you know about me.", "What did I tell you so far?",
              "Sum up what you know about me.", "List what you know about me.", "What do you remember about me?",
              "What do you have on me?", "Repeat everything I told you about me."),
    "test": ("What do you know about me?", "Can you tell me everything you know about me?"),
}  # fmt: skip
"""Questions for all that was told."""
NOTHING = "I don't know anything about you yet."


def in_one(first: str, second: Fact, text: str, rng: random.Random, split: Split) -> str:
    """Two statements as one sentence; the second tells `second`."""
    return first.rstrip(".") + rng.choice(_JOINTS[split]) + after_opening(text, second.value, second.who or "")


def update(fact: Fact, old: str, rng: random.Random, split: Split, *, old_named: float) -> str:
    """A message that tells a fact's new value after an old one.

    Args:
        fact: with the new value.
        old: the one it replaces.
        rng: draws it.
        split: whose phrasings.
        old_named: share of those that name the old value.
    """
    phrasings = fact.phrasings(split)
    named = old_named > 0 and rng.random() < old_named
    if phrasings.updates and not named and rng.random() < 0.6:
        return fact.say(rng.choice(phrasings.updates))
    text = after_opening(fact.statement(rng, split, opening=False), fact.value, fact.who or "")
    if named:
        return rng.choice(OLD_NAMED[split]).format(old=old, new=text)
    return rng.choice(CORRECTIONS[split]).format(text)


def listing(facts: Sequence[Fact], split: Split) -> str:
    """What is known of the facts, in one sentence."""
    parts = [fact.reply(fact.phrasings(split).answer).rstrip(".") for fact in facts]
    parts[1:] = [after_opening(part, fact.value) for part, fact in zip(parts[1:], facts[1:], strict=True)]
    return (", ".join(parts[:-1]) + ", and " if len(parts) > 1 else "") + parts[-1] + "."
