"""What of a conversation is put into a prompt: its end, what a search finds, or as much as fits."""

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from deltamem_agents.engine.prompts import PromptWriter
from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.suites.conversation import Conversation


class Contexts:
    """Chooses messages of one conversation, by their positions, within a number of tokens.

    Tokens are those of the whole messages, the chat template's markers included.
    """

    def __init__(self, writer: PromptWriter, conversation: Conversation) -> None:
        self.messages = conversation.messages
        self.lengths = tuple(n for part in conversation.parts for n in writer.render(part, (), write=False).lengths)

    def recent(self, budget: int) -> tuple[int, ...]:
        """The longest end of the conversation that fits: the window."""
        start, left = len(self.lengths), budget
        while start and self.lengths[start - 1] <= left:
            start -= 1
            left -= self.lengths[start]
        return tuple(range(start, len(self.lengths)))

    def found(self, question: str, budget: int) -> tuple[int, ...]:
        """The messages that BM25 ranks highest for a question, in their own order; a longer one may be passed over.

        Raises:
            ConfigError: bm25s is not installed.
        """
        chosen, left = [], budget
        for place in self._ranked(question):
            if self.lengths[place] <= left:
                chosen.append(place)
                left -= self.lengths[place]
        return tuple(sorted(chosen))

    def fitting(self, places: Sequence[int], budget: int) -> tuple[int, ...]:
        """The first of these messages, as many as fit."""
        chosen = list(places)
        while self.tokens(chosen) > budget:
            chosen.pop()
        return tuple(chosen)

    def tokens(self, places: Sequence[int]) -> int:
        """The tokens of the messages at these positions."""
        return sum(self.lengths[place] for place in places)

    def _ranked(self, question: str) -> list[int]:
        """Positions of messages that share a word with the question, the best first; of equals, the first."""
        words = set(_words([question])[0]) & self._vocabulary
        if not words:
            return []
        scores = self._index.get_scores(sorted(words)).tolist()
        return sorted((p for p, score in enumerate(scores) if score > 0), key=lambda p: -scores[p])

    @cached_property
    def _corpus(self) -> list[list[str]]:
        return _words([message.content for message in self.messages])

    @cached_property
    def _vocabulary(self) -> set[str]:
        return {word for text in self._corpus for word in text}

    @cached_property
    def _index(self) -> Any:
        import bm25s  # type: ignore[import-untyped]  # here: an extra

        index = bm25s.BM25()
        index.index(self._corpus, show_progress=False)
        return index


def require_bm25() -> None:
    """Call this before long work that searches.

    Raises:
        ConfigError: bm25s is not installed.
    """
    if importlib.util.find_spec("bm25s") is None:
        raise ConfigError(
            'the conditions with BM25 need bm25s, which is not installed: pip install "deltamem-agents[evaluate]", or '
            "leave them out with --conditions"
        )


def _words(texts: list[str]) -> list[list[str]]:
    require_bm25()
    import bm25s

    return [list(text) for text in bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)]
