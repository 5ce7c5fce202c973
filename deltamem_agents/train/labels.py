"""Label maps: examples of texts with their labels, then a new text. What a label means is only in the examples."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltamem_agents.train.attributes import Split
from deltamem_agents.train.facts import holds_held_out_word

SHOWN: dict[Split, tuple[str, ...]] = {
    "train": (
        "{text} → label {n}",
        '"{text}" has label {n}.',
        "Text: {text}\nLabel: {n}",
        "{n} is the label of: {text}",
    ),
    "test": ("The label of this text is {n}: {text}",),
}
ASKED: dict[Split, tuple[str, ...]] = {
    "train": (
        "{text} → label?",
        'Which label does "{text}" have?',
        "Text: {text}\nLabel:",
        "What is the label of: {text}",
    ),
    "test": ("What label has this text: {text}",),
}
ANSWER = "Label {n}."

_THINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "weather": (
        ("Will it {} tomorrow?", "It started to {} again.", "They say it will {} all week.", "Does it often {} here?"),
        ("rain", "snow", "storm", "freeze", "hail", "clear up"),
    ),
    "alarm": (
        ("Wake me at {}.", "Set an alarm for {}.", "I have to get up at {}.", "Ring the alarm at {}, please."),
        ("six", "seven", "half past five", "eight", "nine", "noon"),
    ),
    "music": (
        ("Play some {}.", "Put on {} for me.", "I want to hear {}.", "Can you start the {} playlist?"),
        ("jazz", "rock", "classical music", "a slow song", "old hits", "something to dance to"),
    ),
    "banking": (
        ("My {} does not work.", "I lost my {}.", "The {} was declined.", "How do I order a new {}?"),
        ("bank card", "credit card", "debit card", "payment card", "bank account", "savings book"),
    ),
    "cooking": (
        ("How do I cook {}?", "Give me a recipe for {}.", "How long must {} stay in the oven?", "What goes into {}?"),
        ("rice", "a cake", "potato soup", "roast beef", "bread", "an omelette"),
    ),
    "travel": (
        ("Book a {} for two.", "When does the {} leave?", "I need a {} to the coast.", "The {} was late."),
        ("train", "bus", "flight", "taxi", "ferry", "night train"),
    ),
    "light": (
        ("Turn off the light in the {}.", "Make the {} brighter.", "It is too dark in the {}.", "Dim the {} lamp."),
        ("kitchen", "hall", "bath", "bedroom", "cellar", "attic"),
    ),
    "shopping": (
        ("Add {} to the list.", "We are out of {}.", "Buy {} on the way home.", "How much do {} cost?"),
        ("eggs", "apples", "tomatoes", "napkins", "batteries", "onions"),
    ),
    "sport": (
        ("Who won the {} match?", "When is the next {} game?", "Our {} side lost again.", "Show me the {} results."),
        ("football", "tennis", "hockey", "rugby", "cricket", "volleyball"),
    ),
    "health": (
        ("My {} hurts.", "What helps against a sore {}?", "I hurt my {} at work.", "Should I see a doctor for my {}?"),
        ("back", "throat", "knee", "head", "foot", "arm"),
    ),
    "mail": (
        ("Send a mail to {}.", "Did {} answer my mail?", "Read me the mail from {}.", "Forward this to {}."),
        ("the office", "my landlord", "the bank", "the tax man", "support", "the whole group"),
    ),
    "quiz": (
        ("How high is {}?", "Where is {}?", "How many people live near {}?", "Tell me something about {}."),
        ("Mount Everest", "the Eiffel Tower", "the Nile", "Greenland", "the moon", "Big Ben"),
    ),
}


def built_in_texts() -> dict[str, tuple[str, ...]]:
    """Texts by topic, composed from templates: 24 for each of twelve topics."""
    return {topic: tuple(t.format(w) for t in shapes for w in words) for topic, (shapes, words) in _THINGS.items()}


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Examples to be told and a new text, with the label its kind has in them."""

    shown: tuple[str, ...]
    question: str
    label: str


class LabelTexts:
    """Texts by kind, such as intents; every fourth kind is kept for testing.

    Args:
        texts: at least two texts for each kind; None: the built-in ones. Texts with a held-out word are left out.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]] | None = None) -> None:
        usable = {
            kind: tuple(dict.fromkeys(t for t in found if not holds_held_out_word(t)))
            for kind, found in sorted((built_in_texts() if texts is None else texts).items())
        }
        kinds = [kind for kind, found in usable.items() if len(found) > 1]
        self.texts = {kind: usable[kind] for kind in kinds}
        self.kinds: dict[Split, list[str]] = {
            "train": [k for i, k in enumerate(kinds) if i % 4 != 3],
            "test": [k for i, k in enumerate(kinds) if i % 4 == 3],
        }

    def draw(self, rng: random.Random, *, split: Split, labels: int, examples: int) -> LabelMap:
        """A map of at most `labels` labels, `examples` texts each where there are so many, in random order."""
        known = self.kinds[split]
        kinds = rng.sample(known, min(labels, len(known)))
        among = len(kinds) * rng.choice((1, 10))
        numbers = dict(zip(kinds, rng.sample(range(1, among + 1), len(kinds)), strict=True))
        asked = rng.choice(kinds)
        shown: list[str] = []
        question = ""
        for kind, n in numbers.items():
            texts = rng.sample(self.texts[kind], min(examples + 1, len(self.texts[kind])))
            if kind == asked:
                question = rng.choice(ASKED[split]).format(text=texts[-1], n=n)
            shown += [rng.choice(SHOWN[split]).format(text=t, n=n) for t in texts[:-1]]
        rng.shuffle(shown)
        return LabelMap(tuple(shown), question, str(numbers[asked]))
