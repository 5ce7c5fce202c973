"""Other talk: what is said besides facts, of any length."""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from deltamem_agents.errors import TrainingError
from deltamem_agents.train.attributes import Split
from deltamem_agents.train.everyday import everyday
from deltamem_agents.train.facts import holds_held_out_word
from deltamem_agents.train.phrases import phrases

ACKNOWLEDGEMENTS = (
    "Got it.", "Thanks for telling me.", "That's nice to know.", "Okay, noted.", "Great!", "Nice to hear that.",
    "I see. How can I help you today?", "That sounds wonderful!", "Thank you for sharing that with me.",
)  # fmt: skip

SYSTEM_PROMPTS: dict[Split, tuple[str, ...]] = {
    "train": (
        "You are a helpful assistant.", "Answer briefly.", "You are a friendly assistant who answers in one sentence.",
        "Be polite and precise.", "You are the user's personal assistant.", "You are an agent with a good memory.",
        "Answer the user's questions. If you do not know something, say so.", "You are an agent of a small shop.",
        "You help people plan their day. Keep your answers short.", "You are a careful assistant. Make nothing up.",
        "Today is Monday. You talk to a customer on the phone.", "You are Max, an assistant in a shop.",
        "Use what the user has told you before when it helps.", "You are a coding assistant, but you chat as well.",
        "You are a helpful assistant. You can call tools, but only when they are needed.",
        "Given what was said so far and a new question, answer the question.",
        "Context information:\n--------------------\nThe office opens at nine.\n--------------------\n"
        "Answer the question in the light of it, or of what you know.",
    ),
    "test": ("Be kind.", "You are an assistant who remembers what people say.", "Reply in plain English, please."),
}  # fmt: skip

_SUBJECTS = (
    "The old man", "A tall woman", "The children", "Our guest", "The postman", "Some people", "A student", "The crowd",
    "Somebody", "The driver", "A young couple", "The waiter", "Two tourists", "The manager", "A stranger", "They",
)  # fmt: skip
_VERBS = (
    "looked at", "talked about", "forgot", "found", "carried", "bought", "sold", "left behind", "asked for", "repaired",
    "cleaned", "waited for", "laughed about", "moved", "wrote about", "pointed at",
)  # fmt: skip
_OBJECTS = (
    "the broken chair", "a heavy box", "the new house", "an old map", "the long list", "a cup", "the evening news",
    "a pair of shoes", "the last train", "a small table", "the wet umbrella", "the open door", "a strange noise",
    "the garden fence", "a pile of papers", "the empty bottle",
)  # fmt: skip
_TIMES = (
    "yesterday", "in the morning", "after lunch", "before the rain came", "on the way home", "late at night",
    "last week", "without a word", "for the second time", "near the station", "behind the house", "at the party",
)  # fmt: skip


def small_talk(rng: random.Random, split: Split) -> str:
    """Something that tells nothing: small talk of some kind, or a question that no memory is needed for."""
    if split == "train" and rng.random() < _COMPOSED:
        return everyday(rng)
    return rng.choice(rng.choice(list(phrases(rng.choice(_SMALL_TALK))[split].values())))


_SMALL_TALK = ("small_talk", "small_talk", "general_questions")
_COMPOSED = 0.45
"""The share of small talk that is composed, in training."""


def rough_tokens(text: str) -> int:
    """About how many tokens a chat message costs: four for three words, and what the template puts around it."""
    return len(text.split()) * 4 // 3 + 6


class Talk:
    """Sentences that tell nothing about anybody who is asked for.

    Args:
        sentences: more of them, beside the built-in ones.
        count: how many tokens a message costs.
    """

    def __init__(self, sentences: Sequence[str] = (), *, count: Callable[[str], int] = rough_tokens) -> None:
        self.sentences = tuple(sentences)
        self.count = count

    @classmethod
    def from_folder(cls, folder: Path, *, count: Callable[[str], int] = rough_tokens) -> "Talk":
        """With the sentences of a folder's `.txt` files, those left out that hold a held-out word.

        Raises:
            TrainingError: the folder is missing, or holds no usable sentence.
        """
        paths = sorted(folder.rglob("*.txt"))
        text = "\n".join(p.read_text(encoding="utf-8", errors="replace") for p in paths)
        found = [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n+", text)]
        sentences = [s for s in found if 20 <= len(s) <= 300 and not holds_held_out_word(s)]
        if not sentences:
            raise TrainingError(
                f"no sentences of other talk in {folder} ({len(paths)} .txt files): expected plain text files; check "
                "the path, or leave it out"
            )
        return cls(sentences, count=count)

    def sentence(self, rng: random.Random, split: Split = "train") -> str:
        """One sentence, given or built in."""
        if self.sentences and rng.random() < 0.7:
            return rng.choice(self.sentences)
        if rng.random() < 0.5:
            return small_talk(rng, split)
        return " ".join(rng.choice(part) for part in (_SUBJECTS, _VERBS, _OBJECTS, _TIMES)) + "."

    def messages(self, tokens: int, rng: random.Random, split: Split = "train") -> list[str]:
        """Messages of one to four sentences that together cost `tokens` tokens or a few more."""
        messages: list[str] = []
        while tokens > 0:
            messages.append(" ".join(self.sentence(rng, split) for _ in range(rng.randint(1, 4))))
            tokens -= self.count(messages[-1])
        return messages
