"""How probable a token was, and which others were."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token and its log-probability, by the model alone: before temperature, penalties and constraints."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]
    """The most probable tokens at this place, as many as were asked for, the most probable first."""


class ScoredText(str):
    """A piece of a reply's text as it comes, with the log-probabilities of its tokens."""

    logprobs: tuple[TokenLogprob, ...]

    def __new__(cls, text: str, logprobs: Sequence[TokenLogprob]) -> Self:
        """A text that carries them."""
        made = super().__new__(cls, text)
        made.logprobs = tuple(logprobs)
        return made


def scored(emit: Callable[[str], None], logprobs: Sequence[TokenLogprob]) -> Callable[[str], None]:
    """Passes text on, each piece with what has been added to `logprobs` since the last one.

    Tokens that no text is shown for, such as those of a stop string, go with the piece after them, if one comes.
    """
    told = 0

    def pass_on(text: str) -> None:
        nonlocal told
        emit(ScoredText(text, logprobs[told:]))
        told = len(logprobs)

    return pass_on


def token_logprob(tokenizer: PreTrainedTokenizerBase, logits: Tensor, token: int, *, top: int) -> TokenLogprob:
    """The log-probability of a token, from logits [V], with those of the `top` most probable ones."""
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(min(top, len(logprobs)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    others = tuple((str(tokenizer.decode([id])), value) for id, value in pairs)
    return TokenLogprob(str(tokenizer.decode([token])), float(logprobs[token]), others)
