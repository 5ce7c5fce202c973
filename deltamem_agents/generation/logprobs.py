"""How probable a token was, and which others were."""

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token and its log-probability, by the model alone: before temperature, penalties and constraints."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]
    """The most probable tokens at this place, as many as were asked for, the most probable first."""


def token_logprob(tokenizer: PreTrainedTokenizerBase, logits: Tensor, token: int, *, top: int) -> TokenLogprob:
    """The log-probability of a token, from logits [V], with those of the `top` most probable ones."""
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(min(top, len(logprobs)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    others = tuple((str(tokenizer.decode([id])), value) for id, value in pairs)
    return TokenLogprob(str(tokenizer.decode([token])), float(logprobs[token]), others)
