"""One attention layer's memory: gates, reads, writes and corrections. State in, state out."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_agents.config import DeltaMemConfig, Projection
from deltamem_agents.ops import delta_rule, floored, native_gated_delta_rule, runs_native

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


class LayerOutput(NamedTuple):
    """What a layer makes of some tokens."""

    reads: Tensor
    """ρ, float32 [B, T, N·r]."""
    state: Tensor
    """S after the last token, float32 [B, N, r, r]."""
    carry: Tensor | None
    """W_p x of each row's last token, float32 [B, N·r], for the keys of the next ones; None without `key_shift`."""
    gate: Tensor | None = None
    """The read gates g, float32 [B, T, N], where they were asked for."""


class DeltaMemLayer(nn.Module):
    """Writes hidden states into r×r states and reads corrections back (arXiv:2605.12357, section 3).

    `in_proj` packs all projections of a token, so that one matrix product yields them: W_q, what a token needs even
    when it only reads (W_g, W_p), then W_k, W_v, W_β and, when λ is free, W_λ. `block` says which rows are whose.
    """

    def __init__(self, config: DeltaMemConfig, shape: LayerShape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        heads, width, gates = config.num_state_heads, config.width, config.gates
        sizes = {
            "q": width,
            "gate": heads if config.read_gate != "off" else 0,
            "shift": width if config.key_shift else 0,
            "k": width,
            "v": width,
            "beta": gates,
            "lambda": 0 if config.couple_lambda else gates,
        }
        self.block: dict[str, slice] = {}
        """Rows of `in_proj`, by what they project to."""
        for name, size in sizes.items():
            start = sum(b.stop - b.start for b in self.block.values())
            self.block[name] = slice(start, start + size)
        self.in_proj = nn.Parameter(torch.zeros(sum(sizes.values()), shape.hidden))
        self.gate_bias = nn.Parameter(torch.zeros(sizes["beta"] + sizes["lambda"]))
        if config.read_gate != "off":
            self.read_gate_bias = nn.Parameter(torch.zeros(heads))
        if config.read_gate == "match":
            self.read_gate_match = nn.Parameter(torch.zeros(heads, width))
        self.delta = nn.ParameterDict({p: nn.Parameter(torch.zeros(shape.out(p), width)) for p in config.delta_heads})
        if config.trainable_delta_scale != "off":
            self.delta_scale_raw = nn.Parameter(torch.zeros(4 if config.trainable_delta_scale == "projection" else 1))
        if config.delta_o_rmsnorm:
            self.delta_o_rmsnorm_weight = nn.Parameter(torch.ones(shape.o))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialises for training: uniform projections, data-independent gates at their biases, small random Δ."""
        config, bound = self.config, 1.0 / math.sqrt(self.shape.hidden)
        self.in_proj.zero_()
        for name in ("q", "k", "v", "shift"):
            self.in_proj[self.block[name]].uniform_(-bound, bound, generator=generator)
        self.gate_bias[: config.gates].fill_(_over_floor(config.beta_bias_init, config.gate_floor))
        self.gate_bias[config.gates :].fill_(config.lambda_bias_init)
        if config.read_gate != "off":
            self.read_gate_bias.fill_(_over_floor(config.read_gate_bias_init, config.gate_floor))
        for delta in self.delta.values():
            delta.normal_(0.0, config.delta_init_std, generator=generator)

    def forward(
        self,
        hidden: Tensor,
        state: Tensor,
        *,
        write: Tensor | bool = True,
        spans: Tensor | None = None,
        carry: Tensor | None = None,
        valid: Tensor | None = None,
        gates: bool = False,
    ) -> LayerOutput:
        """Reads every token from the state as it passes, and writes it.

        Args:
            hidden: input of the attention module, [B, T, H], any float dtype.
            state: float32 [B, N, r, r].
            write: which tokens are written, bool [B, T], or one bool for all. Padding must be False.
            spans: long [B, T], the span each token belongs to, −1 for none. Given, each span is one write, from the
                mean of its tokens, in order of the span ids, and all tokens read `state` as it came in. None: token
                writes.
            carry: what the forward before gave as its carry, [B, N·r]; None at the beginning of a sequence.
            valid: which tokens are no padding, bool [B, T]; None: all.
            gates: whether the read gates are given back too.

        Returns:
            Reads and new state are float32 under autocast too.
        """
        if torch.is_autocast_enabled(hidden.device.type):
            with torch.autocast(hidden.device.type, enabled=False):
                return self._forward(hidden, state, write, spans, carry, valid, gates)
        return self._forward(hidden, state, write, spans, carry, valid, gates)

    def _forward(
        self,
        hidden: Tensor,
        state: Tensor,
        write: Tensor | bool,
        spans: Tensor | None,
        carry: Tensor | None,
        valid: Tensor | None,
        gates: bool,
    ) -> LayerOutput:
        config, in_proj, block = self.config, self.in_proj, self.block
        spans = None if write is False else spans
        only_read = write is False or spans is not None
        projected = F.linear(hidden.to(in_proj.dtype), in_proj[: block["k"].start] if only_read else in_proj)
        if spans is None and not gates and self._fused(projected, state, carry):
            return LayerOutput(
                *native_gated_delta_rule(
                    projected,
                    self.gate_bias,
                    state,
                    write if isinstance(write, Tensor) else None,
                    state_update_mode=config.state_update_mode,
                    rankwise_gates=config.rankwise_gates,
                    normalize_qk=config.normalize_qk,
                    gate_floor=config.gate_floor,
                    read_gate_bias=self.read_gate_bias if config.read_gate != "off" else None,
                    read_gate_match=self.read_gate_match if config.read_gate == "match" else None,
                    key_shift=config.key_shift,
                    carry=carry,
                    valid=valid,
                    writes=write is not False,
                )
            )
        before: Tensor | None = None
        after: Tensor | None = None
        if config.key_shift:
            before, after = shifted(projected[..., block["shift"]].float(), carry, valid)
        q, written = self._unit(projected[..., block["q"]]), write if isinstance(write, Tensor) else None
        if only_read:
            reads = torch.einsum("bnij,btnj->btni", state, q)
            if spans is not None:
                state = self._write_spans(hidden, before, state, spans, written)
        else:
            k, v, keep, erase, strength = self.writes(projected[..., block["k"].start :], before, written)
            reads, state = delta_rule(q, k, v, keep, erase, strength, state)
        gate = self.read_gate(projected[..., block["gate"]], reads)
        if gate is not None:
            reads = reads * gate.unsqueeze(-1)
        return LayerOutput(reads.flatten(2), state, after, gate if gates else None)

    def read_gate(self, raw: Tensor, reads: Tensor) -> Tensor | None:
        """g, how far each head's read opens: W_g x [B, T, N] and reads S q [B, T, N, r] -> float32 [B, T, N], or None.

        g = floor_c(σ(W_g x + b_g)), with U (S q) added inside where the config's `read_gate` is "match".
        """
        config = self.config
        if config.read_gate == "off":
            return None
        logits = raw.float() + self.read_gate_bias.float()
        if config.read_gate == "match":
            logits = logits + F.linear(reads.flatten(2), self.read_gate_match.float())
        return floored(torch.sigmoid(logits), config.gate_floor)

    def write_gate(self, hidden: Tensor) -> Tensor:
        """β of each token and gate: hidden [B, T, H] -> float32 [B, T, gates]."""
        raw = F.linear(hidden.to(self.in_proj.dtype), self.in_proj[self.block["beta"]]).float()
        bias = self.gate_bias[: self.config.gates].float()
        return floored(torch.sigmoid(raw + bias), self.config.gate_floor)

    def keys(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Keys of tokens written one by one: these and the one before each [..., H] -> float32 [..., N, r]."""
        raw = F.linear(hidden.to(self.in_proj.dtype), self.in_proj[self.block["k"]]).float()
        if self.config.key_shift:
            raw = raw + F.linear(before.to(self.in_proj.dtype), self.in_proj[self.block["shift"]]).float()
        return self._unit(raw)

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

    def _fused(self, projected: Tensor, state: Tensor, carry: Tensor | None) -> bool:
        """Whether one compiled call can do everything after the projection."""
        inputs = [projected, state, self.gate_bias]
        if self.config.read_gate != "off":
            inputs.append(self.read_gate_bias)
        if self.config.read_gate == "match":
            inputs.append(self.read_gate_match)
        if carry is not None:
            inputs.append(carry)
        needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        return not needs_grad and runs_native(*inputs)

    def _scale(self, projection: Projection) -> Tensor | float:
        scale = self.config.scale
        if self.config.trainable_delta_scale == "off":
            return scale
        raw = self.delta_scale_raw["qkvo".index(projection) if len(self.delta_scale_raw) == 4 else 0]
        return torch.sigmoid(raw) * (self.config.delta_scale_max * scale)

    def _unit(self, x: Tensor) -> Tensor:
        """Splits the heads and squashes to unit length: [B, T, N·r] -> float32 [B, T, N, r]."""
        x = x.float().reshape(*x.shape[:-1], self.config.num_state_heads, self.config.rank)
        return F.normalize(torch.tanh(x), dim=-1, eps=UNIT_EPS) if self.config.normalize_qk else x

    def writes(self, projected: Tensor, before: Tensor | None, written: Tensor | None) -> tuple[Tensor, ...]:
        """k, v, keep, erase, write, each float32 [B, T, N, r]; tokens that are not written become identity steps.

        Args:
            projected: W_k x, W_v x, W_β x and W_λ x side by side.
            before: W_p x of the token before, float32 [B, T, N·r], with `key_shift`.
            written: which tokens are written, bool [B, T]; None: all.
        """
        config = self.config
        heads, rank, width, gates = config.num_state_heads, config.rank, config.width, config.gates
        k, v, raw = torch.split(projected, [width, width, projected.shape[-1] - 2 * width], -1)
        raw = torch.sigmoid(raw.float() + self.gate_bias.float())
        kinds = 1 if config.couple_lambda else 2
        raw = raw.reshape(*raw.shape[:-1], kinds, heads, gates // heads)  # [B, T, kinds, N, r or 1]
        raw = raw.expand(*raw.shape[:-1], rank)
        beta = floored(raw[..., 0, :, :], config.gate_floor)
        lam = 1.0 - beta if config.couple_lambda else raw[..., 1, :, :]
        if config.gate_floor and not config.couple_lambda:
            lam = torch.where(beta > 0, lam, 1.0)
        keep = torch.ones_like(lam) if config.state_update_mode == "no_lambda" else lam
        erase = lam * beta if config.state_update_mode == "lambda_outside" else beta
        if written is not None:
            on = written[..., None, None]
            keep, erase, beta = torch.where(on, keep, 1.0), torch.where(on, erase, 0.0), torch.where(on, beta, 0.0)
        values = v.float().reshape(*v.shape[:-1], heads, rank)
        return self._unit(k if before is None else k.float() + before), values, keep, erase, beta

    def _write_spans(
        self, hidden: Tensor, before: Tensor | None, state: Tensor, spans: Tensor, written: Tensor | None
    ) -> Tensor:
        """The state after one write a span: its tokens' mean hidden state, and for its key their mean token before."""
        spans = spans if written is None else torch.where(written, spans, -1)
        means, present = _span_means(hidden, spans)
        projected = F.linear(means.to(self.in_proj.dtype), self.in_proj[self.block["k"].start :])
        before = None if before is None else _span_means(before, spans)[0]
        k, v, keep, erase, strength = self.writes(projected, before, present)
        return delta_rule(torch.zeros_like(k), k, v, keep, erase, strength, state)[1]


def shifted(projected: Tensor, carry: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each token what the last one before it that is no padding projects to, and for each row what its last does.

    projected [B, T, R], carry [B, R] (None: zeros), valid bool [B, T] (None: all) -> [B, T, R], [B, R].
    """
    first = projected.new_zeros(projected.shape[0], projected.shape[-1]) if carry is None else carry
    known = torch.cat([first.to(projected.dtype).unsqueeze(1), projected], 1)  # [B, 1 + T, R]
    if valid is None:
        return known[:, :-1], known[:, -1]
    places = torch.arange(1, valid.shape[1] + 1, device=valid.device)
    last = F.pad(torch.where(valid, places, 0).cummax(1).values, (1, 0))  # [B, 1 + T]: the last valid place so far
    chosen = known.gather(1, last.unsqueeze(-1).expand_as(known))
    return chosen[:, :-1], chosen[:, -1]


def _over_floor(bias: float, floor: float) -> float:
    """The bias with which a gate that has this floor opens as far as σ(bias): a closed one would be slow to learn."""
    if not floor:
        return bias
    opened = floor + (1 - floor) / (1 + math.exp(-bias))
    return math.log(opened / (1 - opened))


def _span_means(hidden: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
    """Mean hidden state of each span: [B, T, H] and ids [B, T] -> float32 [B, S, H] and which exist, bool [B, S]."""
    ids, dense = torch.unique(spans, return_inverse=True)  # sorted, so the order of writes is the order of ids
    hidden = hidden.float()
    sums = hidden.new_zeros(hidden.shape[0], len(ids), hidden.shape[-1])
    sums = sums.scatter_add(1, dense.unsqueeze(-1).expand_as(hidden), hidden)
    counts = hidden.new_zeros(hidden.shape[0], len(ids)).scatter_add(1, dense, torch.ones_like(hidden[..., 0]))
    return sums / counts.clamp_min(1.0).unsqueeze(-1), (counts > 0) & (ids >= 0)
