"""What training minimises, as functions of logits, targets and gates. Everything is in nats."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""A target that does not count."""


def answer_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of −log p(target) over the answers' tokens: logits [B, A, V], targets long [B, A] -> scalar."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def answer_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean log p(target) of each answer's tokens: logits [B, A, V], targets long [B, A] -> [B]."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    counts = (targets != IGNORED).sum(-1).clamp_min(1)
    return -losses.view(targets.shape).sum(-1) / counts


def exact(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether every token of an answer is the likeliest one: logits [B, A, V], targets long [B, A] -> bool [B]."""
    return ((logits.argmax(-1) == targets) | (targets == IGNORED)).all(-1)


def distillation(logits: Tensor, teacher: Tensor, on: Tensor, *, top_k: int) -> Tensor:
    """Σ_k p_k (log p_k − log q_k), the mean over the tokens `on`; 0 where there are none.

    p is the teacher's distribution over its own `top_k` likeliest tokens, normalised over them; q the student's over
    all tokens.

    Args:
        logits: the student's, [B, A, V].
        teacher: the teacher's logits, [B, A, V]; no gradient flows into them.
        on: which positions count, bool [B, A].
        top_k: how many of the teacher's tokens are kept.
    """
    if not bool(on.any()):
        return logits.sum() * 0.0
    best, index = teacher[on].detach().topk(min(top_k, teacher.shape[-1]), -1)
    log_p = F.log_softmax(best, -1)
    log_q = F.log_softmax(logits[on], -1).gather(-1, index)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def own_beats_swapped(own: Tensor, swapped: Tensor, *, margin: float) -> Tensor:
    """Mean of max(0, margin − (own − swapped)): mean log-probabilities [B] under the own state and another's."""
    return F.relu(margin - (own - swapped)).mean()


def plain_divergence(logits: Tensor, plain: Tensor, on: Tensor) -> Tensor:
    """KL(plain ‖ with memory), the mean over the tokens `on`: logits and plain [B, A, V], on bool [B, A] -> scalar."""
    log_probs, plain_log_probs = F.log_softmax(logits[on], -1), F.log_softmax(plain[on].detach(), -1)
    return F.kl_div(log_probs, plain_log_probs, log_target=True, reduction="batchmean")


def open_cost(gate: Tensor) -> Tensor:
    """−log(1 − g) of gates in [0, 1], each by itself: what it takes to close one that is all but fully open.

    The mean of g would not: a sigmoid that is nearly 1 hardly moves. Through a sigmoid, the gradient of this is g.
    """
    return -torch.log1p(-gate * (1.0 - 1e-6))


def closed_cost(gates: Tensor) -> Tensor:
    """−log of the mean gate, [..., gates] in [0, 1] -> [...]: what it takes to open some, whichever."""
    return -torch.log(gates.mean(-1) + 1e-3)


def key_overlap(keys: Tensor, memories: Tensor, facts: Tensor) -> Tensor:
    """Mean squared cosine of keys of different facts in one memory: what writing one takes from the other.

    keys [T, N, r], and whose each is, memories and facts long [T] -> scalar, NaN where no memory is told two facts.
    """
    keys = F.normalize(keys, dim=-1)
    pairs = (memories.unsqueeze(1) == memories) & (facts.unsqueeze(1) != facts)
    return torch.einsum("tnr,snr->tsn", keys, keys)[pairs].square().mean()


def gate_mean(beta: Tensor, on: Tensor) -> Tensor:
    """Mean write gate over the tokens `on`, NaN where there are none: beta [B, W], on bool [B, W] -> scalar."""
    return beta[on].mean() if bool(on.any()) else torch.full((), torch.nan, device=beta.device)
