"""Reading the config of published adapters, which carries many archived options."""

from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import ConfigError

ARCHIVED: dict[str, object] = {
    "num_memory_partitions": 1,
    "num_global_memory_partitions": 0,
    "memory_partition_routing": "soft",
    "memory_partition_basis": "shared",
    "tie_memory_partition_read_write": False,
    "memory_partition_read_mode": "softmax",
    "memory_partition_sigmoid_gate_bias_init": -2.0,
    "slot_read_top_k": 0,
    "global_memory_mode": "shared_rw",
    "global_memory_read_top_k": 0,
    "global_memory_merge_mode": "gated_residual",
    "global_memory_gate_bias_init": -2.0,
    "global_memory_read_logit_bias": 0.0,
    "memory_reader_layers": [],
    "memory_reader_hidden_size": 1024,
    "memory_reader_residual_scale": 0.1,
    "memory_reader_read_only": True,
    "memory_readout_mode": "delta",
    "memory_write_source": "learned_hidden",
    "memory_write_proposals_per_message": 2,
    "synthetic_memory_slots": 1,
    "latent_memory_layers": [],
    "latent_memory_hidden_size": 1024,
    "latent_memory_residual_scale": 0.1,
    "latent_memory_slots": 4,
    "latent_memory_init_std": 0.002,
    "latent_gate_init": 0.01,
    "target_modules": ["self_attn"],
    "delta_scale_parameterization": "alpha_over_rank",
}
"""Options of published configs that this package serves at one value only."""

INITIALISATION = {"output_init", "base_slice_ref_width", "online_gain", "delta_scale_init"}
"""Options that only say how a published adapter was initialised: they change nothing once it is trained."""

RENAMED = {
    "rank": "rank",
    "alpha": "alpha",
    "num_state_heads": "num_state_heads",
    "delta_heads": "delta_heads",
    "state_update_mode": "state_update_mode",
    "couple_lambda": "couple_lambda",
    "memory_write_granularity": "write_granularity",
    "rankwise_gates": "rankwise_gates",
    "normalize_qk": "normalize_qk",
    "delta_scale_max": "delta_scale_max",
    "delta_o_rmsnorm": "delta_o_rmsnorm",
    "delta_o_rmsnorm_eps": "delta_o_rmsnorm_eps",
    "beta_bias_init": "beta_bias_init",
}
"""Options that live on here, under our names."""

DEFAULTS: dict[str, object] = {
    "num_state_heads": 1,
    "couple_lambda": True,
    "delta_heads": ("q", "o"),
    "key_shift": False,
    "read_gate": "off",
    "gate_floor": 0.0,
}
"""What published adapters have where their config says nothing, or can't say anything."""


def config_from_published(data: dict[str, object], *, source: str) -> DeltaMemConfig:
    """Translates a published config; its adapters were trained with every role absorbed.

    Raises:
        ConfigError: names the option and the value that is not served.
    """
    known = ARCHIVED.keys() | INITIALISATION | RENAMED.keys()
    known |= {"target_layers", "trainable_delta_scale", "delta_scale_granularity"}
    unknown = sorted(data.keys() - known)
    if unknown:
        raise ConfigError(f"{source} has unknown options {unknown}: it is not a published delta-mem config we know")
    for key, default in ARCHIVED.items():
        if key in data and data[key] != default:
            raise ConfigError(
                f"{source}: {key} is {data[key]!r}; this archived option is served at {default!r} only. Retrain the "
                "adapter without it"
            )
    translated = DEFAULTS | {ours: data[theirs] for theirs, ours in RENAMED.items() if theirs in data}
    if data.get("trainable_delta_scale"):
        granularity = data.get("delta_scale_granularity", "layer")
        if granularity not in ("layer", "head"):
            raise ConfigError(f"{source}: delta_scale_granularity is {granularity!r}, expected 'layer' or 'head'")
        translated["trainable_delta_scale"] = "projection" if granularity == "head" else "layer"
    translated["target_layers"] = data.get("target_layers") or None
    translated["absorb_roles"] = ("system", "user", "assistant", "tool")
    return DeltaMemConfig.parse(translated, source=source)
