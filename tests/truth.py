"""A layer's memory by its equations, a token at a time in float64: what every path is held against."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_agents.adapter.files import to_disk
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.layer import DeltaMemLayer

Weights = Mapping[str, Tensor]
"""A layer's weights by their names on disk."""


@dataclass(frozen=True)
class Truth:
    """What a layer must come to, float64."""

    reads: Tensor
    """[B, T, N·r]"""
    state: Tensor
    """[B, N, r, r]"""
    carry: Tensor | None
    """[B, N·r], with `key_shift`"""
    gates: Tensor
    """g, [B, T, N]; 1 without a read gate"""
    betas: Tensor
    """β, [B, T, N, r]"""
    keeps: Tensor
    """What each token would keep of the state if it is written, [B, T, N, r]"""
    margin: float
    """How near a write gate comes to the floor. λ jumps to 1 there, so float32 may differ where this is tiny."""


def weights_of(layer: DeltaMemLayer) -> dict[str, Tensor]:
    """The layer's weights as they are, in float64, without a graph."""
    return {name: t.detach().double() for name, t in to_disk(layer).items()}


def floor(z: Tensor, c: float) -> Tensor:
    """max(0, (z − c) / (1 − c)) with the gradient of z."""
    if c == 0:
        return z
    return z + (torch.clamp((z - c) / (1 - c), min=0) - z).detach()


class _Equations:
    """One layer's equations, for a token x of H numbers and a head h."""

    def __init__(self, weights: Weights, config: DeltaMemConfig) -> None:
        self.w, self.config, self.rank = weights, config, config.rank

    def rows(self, h: int) -> slice:
        return slice(h * self.rank, (h + 1) * self.rank)

    def unit(self, x: Tensor) -> Tensor:
        if not self.config.normalize_qk:
            return x
        x = torch.tanh(x)
        return x / x.square().sum().sqrt().clamp_min(1e-6)

    def query(self, x: Tensor, h: int) -> Tensor:
        return self.unit((self.w["memory_q_proj"] @ x)[self.rows(h)])

    def key(self, x: Tensor, before: Tensor | None, h: int) -> Tensor:
        k = self.w["memory_k_proj"] @ x
        return self.unit((k if before is None else k + before)[self.rows(h)])

    def gate(self, name: str, x: Tensor, h: int) -> Tensor:
        z = torch.sigmoid(self.w[f"{name}_proj"] @ x + self.w[f"{name}_bias"])
        return z[self.rows(h)] if self.config.rankwise_gates else z[h].expand(self.rank)

    def read_gates(self, x: Tensor, reads: Tensor) -> Tensor:
        """g of all heads, from x and what all of them read, [N·r]."""
        config = self.config
        if config.read_gate == "off":
            return torch.ones(config.num_state_heads, dtype=torch.float64)
        logits = self.w["read_gate_proj"] @ x + self.w["read_gate_bias"]
        if config.read_gate == "match":
            logits = logits + self.w["read_gate_match"] @ reads
        return floor(torch.sigmoid(logits), config.gate_floor)

    def strengths(self, x: Tensor, h: int) -> tuple[Tensor, Tensor, Tensor]:
        """keep, erase and write."""
        config = self.config
        beta = floor(self.gate("beta", x, h), config.gate_floor)
        lam = 1 - beta if config.couple_lambda else self.gate("lambda", x, h)
        if config.gate_floor and not config.couple_lambda:
            lam = torch.stack([one if b > 0 else torch.ones_like(one) for one, b in zip(lam, beta, strict=True)])
        keep = torch.ones_like(lam) if config.state_update_mode == "no_lambda" else lam
        return keep, lam * beta if config.state_update_mode == "lambda_outside" else beta, beta

    def write(self, s: Tensor, x: Tensor, before: Tensor | None, h: int) -> Tensor:
        """S ← diag(keep) S − diag(erase) (S k) kᵀ + diag(write) v kᵀ."""
        k, v = self.key(x, before, h), (self.w["memory_v_proj"] @ x)[self.rows(h)]
        keep, erase, beta = self.strengths(x, h)
        return keep.diag() @ s - erase.diag() @ torch.outer(s @ k, k) + beta.diag() @ torch.outer(v, k)


def by_the_book(
    weights: Weights,
    config: DeltaMemConfig,
    hidden: Tensor,
    state: Tensor,
    *,
    write: Tensor | None = None,
    spans: Tensor | None = None,
    carry: Tensor | None = None,
    valid: Tensor | None = None,
) -> Truth:
    """The equations of the paper's section 3, with keys that see the token before, and gates with a floor.

    `write` and `valid` None mean all tokens. With `spans` every token reads the state as it came in, and each span is
    one write afterwards, from the mean of its written tokens and the mean of what their keys take from tokens before.
    """
    equations, heads = _Equations(weights, config), range(config.num_state_heads)
    hidden = hidden.double()
    reads, gates, raw, strengths, states, carries = [], [], [], [], [], []
    for b, row in enumerate(hidden):
        s = [state[b, h].double() for h in heads]
        on = [True] * len(row) if write is None else write[b].tolist()
        last = torch.zeros(config.width, dtype=torch.float64) if carry is None else carry[b].double()
        before: list[Tensor | None] = []
        for t, x in enumerate(row):
            before.append(last if config.key_shift else None)
            if config.key_shift and (valid is None or valid[b, t]):
                last = weights["memory_k_shift_proj"] @ x
            read = torch.stack([s[h] @ equations.query(x, h) for h in heads])
            g = equations.read_gates(x, read.flatten())
            reads.append((g[:, None] * read).flatten())
            gates.append(g)
            raw.append(torch.stack([equations.gate("beta", x, h) for h in heads]))
            strengths.append(torch.stack([torch.stack(equations.strengths(x, h)) for h in heads]))  # [N, 3, r]
            if spans is None and on[t]:
                s = [equations.write(s[h], x, before[t], h) for h in heads]
        for span in sorted({int(i) for i in spans[b] if i >= 0}) if spans is not None else ():
            own = [t for t in range(len(row)) if on[t] and spans is not None and spans[b, t] == span]
            if own:
                mean = row[own].mean(0)
                earlier = [x for t in own if (x := before[t]) is not None]
                shift = torch.stack(earlier).mean(0) if earlier else None
                s = [equations.write(s[h], mean, shift, h) for h in heads]
        states.append(torch.stack(s))
        carries.append(last)
    shape = *hidden.shape[:2], config.num_state_heads
    z = torch.stack(raw) if raw else hidden.new_zeros(0)
    keeps, _, betas = (torch.stack(strengths) if raw else hidden.new_zeros(0, 1, 3, config.rank)).unbind(2)
    return Truth(
        torch.stack(reads).view(*shape[:2], -1) if reads else hidden.new_zeros(*shape[:2], config.width),
        torch.stack(states),
        torch.stack(carries) if config.key_shift else None,
        torch.stack(gates).view(shape) if gates else hidden.new_zeros(shape),
        betas.reshape(*shape, config.rank),
        keeps.reshape(*shape, config.rank),
        float((z - config.gate_floor).abs().min().detach()) if z.numel() and config.gate_floor else 1.0,
    )
