"""One attention layer's memory: gates, reads, writes and corrections. State in, state out."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_agents.config import DeltaMemConfig, Projection
from deltamem_agents.ops import delta_rule, native_gated_delta_rule, runs_native

UNIT_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Sizes of one attention module: its input, and what each of its projections puts out."""

    hidden: int
    q: int
    k: int
    v: int
    o: int

    def out(self, projection: Projection) -> int:
        """Output features of `projection`."""
        return {"q": self.q, "k": self.k, "v": self.v, "o": self.o}[projection]


class DeltaMemLayer(nn.Module):
    """Writes hidden states into r×r states and reads corrections back (arXiv:2605.12357, section 3).

    `in_proj` packs W_q, W_k, W_v, W_β and, when λ is free, W_λ: one matrix product yields all a token needs.
    """

    def __init__(self, config: DeltaMemConfig, shape: LayerShape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        gate_kinds = 1 if config.couple_lambda else 2
        width, gates = config.width, config.gates
        self.in_proj = nn.Parameter(torch.zeros(3 * width + gate_kinds * gates, shape.hidden))
        self.gate_bias = nn.Parameter(torch.zeros(gate_kinds * gates))
        self.delta = nn.ParameterDict({p: nn.Parameter(torch.zeros(shape.out(p), width)) for p in config.delta_heads})
        if config.trainable_delta_scale != "off":
            self.delta_scale_raw = nn.Parameter(torch.zeros(4 if config.trainable_delta_scale == "projection" else 1))
        if config.delta_o_rmsnorm:
            self.delta_o_rmsnorm_weight = nn.Parameter(torch.ones(shape.o))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialises for training: uniform projections, data-independent gates at their biases, small random Δ."""
        config, width = self.config, self.config.width
        self.in_proj.zero_()
        bound = 1.0 / math.sqrt(self.shape.hidden)
        self.in_proj[: 3 * width].uniform_(-bound, bound, generator=generator)
        self.gate_bias[: config.gates].fill_(config.beta_bias_init)
        self.gate_bias[config.gates :].fill_(config.lambda_bias_init)
        for delta in self.delta.values():
            delta.normal_(0.0, config.delta_init_std, generator=generator)

    def forward(
        self,
        hidden: Tensor,
        state: Tensor,
        *,
        write: Tensor | bool = True,
        spans: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Reads every token from the state as it passes, and writes it.

        Args:
            hidden: input of the attention module, [B, T, H], any float dtype.
            state: float32 [B, N, r, r].
            write: which tokens are written, bool [B, T], or one bool for all. Padding must be False.
            spans: long [B, T], the span each token belongs to, −1 for none. Given, each span is one write, from the
                mean of its tokens, in order of the span ids, and all tokens read `state` as it came in. None: token
                writes.

        Returns:
            Reads, float32 [B, T, N·r], and the new state, float32 [B, N, r, r], under autocast too.
        """
        if torch.is_autocast_enabled(hidden.device.type):
            with torch.autocast(hidden.device.type, enabled=False):
                return self._forward(hidden, state, write, spans)
        return self._forward(hidden, state, write, spans)

    def _forward(
        self, hidden: Tensor, state: Tensor, write: Tensor | bool, spans: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        in_proj = self.in_proj
        only_read = write is False or spans is not None
        projected = F.linear(hidden.to(in_proj.dtype), in_proj[: self.config.width] if only_read else in_proj)
        if (write is False or spans is None) and self._fused(projected, state):
            return native_gated_delta_rule(
                projected,
                self.gate_bias,
                state,
                write if isinstance(write, Tensor) else None,
                state_update_mode=self.config.state_update_mode,
                rankwise_gates=self.config.rankwise_gates,
                normalize_qk=self.config.normalize_qk,
                writes=write is not False,
            )
        if write is False:
            return self._read(projected, state), state
        if spans is None:
            q, k, v, keep, erase, strength = self._gates(projected, None if write is True else write)
            reads, state = delta_rule(q, k, v, keep, erase, strength, state)
            return reads.flatten(2), state
        reads = self._read(projected, state)
        means, present = _span_means(hidden, spans if write is True else torch.where(write, spans, -1))
        q, k, v, keep, erase, strength = self._gates(F.linear(means.to(self.in_proj.dtype), self.in_proj), present)
        return reads, delta_rule(q, k, v, keep, erase, strength, state)[1]

    def correction(self, projection: Projection, reads: Tensor) -> Tensor:
        """s·Δ ρ for one projection: reads [B, T, N·r] -> [B, T, out features], in the adapter's dtype."""
        delta = self.delta[projection]
        out = F.linear(reads.to(delta.dtype), delta) * self._scale(projection)
        if projection == "o" and self.config.delta_o_rmsnorm:
            out = F.rms_norm(out, out.shape[-1:], self.delta_o_rmsnorm_weight, self.config.delta_o_rmsnorm_eps)
        return out

    def correct(self, projection: Projection, out: Tensor, reads: Tensor) -> Tensor:
        """`out` + s·Δ ρ, [B, T, out features], in the dtype of `out`; written into `out` when no gradient is wanted."""
        delta, config = self.delta[projection], self.config
        if (
            torch.is_grad_enabled()
            or config.trainable_delta_scale != "off"
            or (projection == "o" and config.delta_o_rmsnorm)
            or not (out.dtype == reads.dtype == delta.dtype and out.is_contiguous())
        ):
            return out + self.correction(projection, reads).to(out.dtype)
        out.view(-1, out.shape[-1]).addmm_(reads.reshape(-1, reads.shape[-1]), delta.t(), alpha=config.scale)
        return out

    def _fused(self, projected: Tensor, state: Tensor) -> bool:
        """Whether one compiled call can do everything after the projection."""
        needs_grad = torch.is_grad_enabled() and (projected.requires_grad or state.requires_grad)
        return not needs_grad and runs_native(projected, state, self.gate_bias)

    def _scale(self, projection: Projection) -> Tensor | float:
        scale = self.config.scale
        if self.config.trainable_delta_scale == "off":
            return scale
        raw = self.delta_scale_raw["qkvo".index(projection) if len(self.delta_scale_raw) == 4 else 0]
        return torch.sigmoid(raw) * (self.config.delta_scale_max * scale)

    def _read(self, projected: Tensor, state: Tensor) -> Tensor:
        """Reads without writes: [B, T, ·] and [B, N, r, r] -> [B, T, N·r]."""
        q = self._unit(projected[..., : self.config.width])  # [B, T, N, r]
        return torch.einsum("bnij,btnj->btni", state, q).flatten(2)

    def _unit(self, x: Tensor) -> Tensor:
        """Splits the heads and squashes to unit length: [B, T, N·r] -> float32 [B, T, N, r]."""
        x = x.float().reshape(*x.shape[:-1], self.config.num_state_heads, self.config.rank)
        return F.normalize(torch.tanh(x), dim=-1, eps=UNIT_EPS) if self.config.normalize_qk else x

    def _gates(self, projected: Tensor, written: Tensor | None) -> tuple[Tensor, ...]:
        """q, k, v, keep, erase, write, each float32 [B, T, N, r]; tokens that are not written become identity steps."""
        config = self.config
        heads, rank, width, gates = config.num_state_heads, config.rank, config.width, config.gates
        q, k, v, raw = torch.split(projected, [width, width, width, projected.shape[-1] - 3 * width], -1)
        raw = torch.sigmoid(raw.float() + self.gate_bias.float())
        raw = raw.reshape(*raw.shape[:-1], -1, heads, gates // heads)  # [B, T, kinds, N, r or 1]
        raw = raw.expand(*raw.shape[:-1], rank)
        beta = raw[..., 0, :, :]
        lam = 1.0 - beta if config.couple_lambda else raw[..., 1, :, :]
        keep = torch.ones_like(lam) if config.state_update_mode == "no_lambda" else lam
        erase = lam * beta if config.state_update_mode == "lambda_outside" else beta
        if written is not None:
            on = written[..., None, None]
            keep, erase, beta = torch.where(on, keep, 1.0), torch.where(on, erase, 0.0), torch.where(on, beta, 0.0)
        values = v.float().reshape(*v.shape[:-1], heads, rank)
        return self._unit(q), self._unit(k), values, keep, erase, beta


def _span_means(hidden: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
    """Mean hidden state of each span: [B, T, H] and ids [B, T] -> float32 [B, S, H] and which exist, bool [B, S]."""
    ids, dense = torch.unique(spans, return_inverse=True)  # sorted, so the order of writes is the order of ids
    hidden = hidden.float()
    sums = hidden.new_zeros(hidden.shape[0], len(ids), hidden.shape[-1])
    sums = sums.scatter_add(1, dense.unsqueeze(-1).expand_as(hidden), hidden)
    counts = hidden.new_zeros(hidden.shape[0], len(ids)).scatter_add(1, dense, torch.ones_like(hidden[..., 0]))
    return sums / counts.clamp_min(1.0).unsqueeze(-1), (counts > 0) & (ids >= 0)
