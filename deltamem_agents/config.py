"""What an adapter is made of: one frozen config, passed whole."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deltamem_agents.errors import ConfigError

Projection = Literal["q", "k", "v", "o"]
Role = Literal["system", "user", "assistant", "tool"]
StateUpdateMode = Literal["standard", "lambda_outside", "no_lambda"]
WriteGranularity = Literal["token", "message_mean", "sentence_mean"]


class DeltaMemConfig(BaseModel):
    """The options of one adapter. The defaults are MSW, parallel 8×8 states with gates that close and keys that bind.

    Raises:
        ConfigError: through `DeltaMemConfig.parse`, for unknown fields and impossible values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: int = Field(default=8, ge=1, le=256)
    """r: each state matrix is r×r."""
    alpha: float = Field(default=16.0, gt=0)
    """Corrections are scaled by alpha / rank."""
    num_state_heads: int = Field(default=4, ge=1, le=64)
    """N parallel states per layer: 1 is TSW (or SSW), more is MSW."""
    delta_heads: tuple[Projection, ...] = ("o",)
    """Which attention projections are corrected."""
    state_update_mode: StateUpdateMode = "standard"
    """How keep, erase and write derive from the gates λ and β: (λ, β, β), (λ, λβ, β) or (1, β, β)."""
    couple_lambda: bool = False
    """True: λ = 1 − β. False: λ = σ(W_λ x + b_λ), a gate of its own."""
    write_granularity: WriteGranularity = "token"
    """One write per token, or one per span (message or sentence) from the mean of its tokens."""
    rankwise_gates: bool = True
    """One gate per row of the state, or one per state head."""
    normalize_qk: bool = True
    """Whether memory queries and keys are tanh-squashed and scaled to unit length."""
    key_shift: bool = True
    """Whether a token's key is made of the token before it too: k = l2(tanh(W_k x_t + W_p x_{t−1}))."""
    read_gate: Literal["off", "token", "match"] = "token"
    """Whether each head's read passes a gate σ(W_g x + b_g), and whether that gate sees what is read too: "match"
    adds U (S q), so that it can tell a key that was written from one that never was."""
    gate_floor: float = Field(default=0.3, ge=0, lt=1)
    """c: write and read gates are max(0, (σ − c) / (1 − c)), so that they close; 0 leaves them as they are."""
    trainable_delta_scale: Literal["off", "layer", "projection"] = "off"
    """A learned factor on the corrections: none, one per layer, or one for each of q, k, v, o."""
    delta_scale_max: float = Field(default=2.0, gt=0)
    """The learned factor is sigmoid(raw) · delta_scale_max."""
    delta_o_rmsnorm: bool = False
    """Whether the o correction passes through an RMSNorm of its own."""
    delta_o_rmsnorm_eps: float = Field(default=1e-6, gt=0)
    """ε of that RMSNorm."""
    target_layers: tuple[int, ...] | None = None
    """Which decoder layers carry a memory; None means all."""
    beta_bias_init: float = -2.0
    """b_β at initialisation: σ(−2) ≈ 0.12 of each write goes in. With a floor b_β is higher, so that as much does."""
    lambda_bias_init: float = 5.0
    """b_λ at initialisation: σ(5) ≈ 0.993 of the state is kept per token."""
    read_gate_bias_init: float = 1.0
    """b_g at initialisation: σ(1) ≈ 0.73 of each read passes, likewise."""
    delta_init_std: float = Field(default=0.02, ge=0)
    """Standard deviation of Δ at initialisation."""
    absorb_roles: tuple[Role, ...] = ("user", "tool")
    """Messages of these roles are written into the state; the others are only read past."""

    @field_validator("read_gate", "trainable_delta_scale", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare off as false

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.delta_heads:
            raise ValueError("delta_heads is empty: name at least one of q, k, v, o")
        for name in ("delta_heads", "target_layers", "absorb_roles"):
            values = getattr(self, name)
            if values is not None and len(set(values)) != len(values):
                raise ValueError(f"{name} names something twice: {values}")
        if self.target_layers is not None and (not self.target_layers or min(self.target_layers) < 0):
            raise ValueError(f"target_layers must be None or non-negative layer numbers, got {self.target_layers}")
        if self.delta_o_rmsnorm and "o" not in self.delta_heads:
            raise ValueError(f"delta_o_rmsnorm is for the o correction, but delta_heads is {self.delta_heads}: add o")
        return self

    @classmethod
    def parse(cls, data: dict[str, object], *, source: str = "config") -> Self:
        """Builds a config from plain data, with a typed error that names `source` and every bad field."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
            raise ConfigError(f"{source} is not a valid delta-mem config: {found}") from error

    def identity(self) -> dict[str, object]:
        """The options as plain data, without those of later versions that are off: adapters keep their fingerprints."""
        off = {"key_shift": False, "read_gate": "off", "gate_floor": 0.0}
        data = self.model_dump(mode="json")
        without = {name for name, value in off.items() if data[name] == value}
        if "read_gate" in without:
            without.add("read_gate_bias_init")
        return {name: value for name, value in data.items() if name not in without}

    @property
    def spans(self) -> bool:
        """True when writes happen per message or sentence, not per token (SSW)."""
        return self.write_granularity != "token"

    @property
    def width(self) -> int:
        """R = num_state_heads · rank, the width of a read."""
        return self.num_state_heads * self.rank

    @property
    def gates(self) -> int:
        """G: how many gate values a token has, per gate kind."""
        return self.width if self.rankwise_gates else self.num_state_heads

    @property
    def scale(self) -> float:
        """The factor s = alpha / rank on corrections."""
        return self.alpha / self.rank
