"""Configs: frozen, strict, and wrong in words that say which field and why."""

import pytest
from pydantic import ValidationError

from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import ConfigError


def test_defaults_are_four_states_with_free_retention_and_gates_that_close() -> None:
    config = DeltaMemConfig()
    assert (config.rank, config.num_state_heads, config.width, config.gates) == (8, 4, 32, 32)
    assert config.delta_heads == ("o",)
    assert (config.key_shift, config.read_gate, config.gate_floor) == (True, "token", 0.3)
    assert not config.couple_lambda
    assert not config.spans
    assert config.scale == 2.0


def test_sizes() -> None:
    config = DeltaMemConfig(rank=3, num_state_heads=5, rankwise_gates=False, write_granularity="sentence_mean", alpha=6)
    assert (config.width, config.gates, config.scale, config.spans) == (15, 5, 2.0, True)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"rnak": 8}, "rnak: Extra inputs"),
        ({"rank": 0}, "rank: .* greater than or equal to 1"),
        ({"rank": 2.5}, "rank: "),
        ({"alpha": 0}, "alpha: .* greater than 0"),
        ({"alpha": float("nan")}, "alpha: .* finite"),
        ({"alpha": float("inf")}, "alpha: .* finite"),
        ({"lambda_bias_init": float("inf")}, "lambda_bias_init: .* finite"),
        ({"delta_heads": ()}, "delta_heads is empty"),
        ({"delta_heads": ("q", "q")}, "delta_heads names something twice"),
        ({"delta_heads": ("q", "gate")}, r"delta_heads.1: Input should be 'q', 'k', 'v' or 'o'"),
        ({"state_update_mode": "none"}, "state_update_mode: .*'standard', 'lambda_outside' or 'no_lambda'"),
        ({"write_granularity": "word"}, "write_granularity: .*'token'"),
        ({"target_layers": ()}, "target_layers must be None or"),
        ({"target_layers": (1, -1)}, r"target_layers must be .* got \(1, -1\)"),
        ({"target_layers": (1, 1)}, "target_layers names something twice"),
        ({"absorb_roles": ("robot",)}, "absorb_roles.0: "),
        ({"trainable_delta_scale": True}, "trainable_delta_scale: "),
        ({"delta_heads": ("q",), "delta_o_rmsnorm": True}, r"delta_heads is \('q',\): add o"),
        ({"read_gate": "on"}, "read_gate: .*'off', 'token' or 'match'"),
        ({"gate_floor": 1.0}, "gate_floor: .* less than 1"),
        ({"gate_floor": -0.1}, "gate_floor: .* greater than or equal to 0"),
        ({"rank": 0, "alpha": -1}, "rank: .*; alpha: "),
        ([], "config: Input should be"),
    ],
)
def test_what_cannot_be_served(data: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^my.json is not a valid delta-mem config: .*{words}"):
        DeltaMemConfig.parse(data, source="my.json")


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        DeltaMemConfig().rank = 4


def test_json_and_back() -> None:
    config = DeltaMemConfig(delta_heads=("o", "k"), target_layers=(3, 1), absorb_roles=("user",), alpha=0.3)
    assert DeltaMemConfig.parse(config.model_dump(mode="json")) == config
    assert DeltaMemConfig.model_validate_json(config.model_dump_json()) == config


def test_what_is_off_is_no_part_of_what_an_adapter_is() -> None:
    """So that adapters from before these options keep their fingerprints."""
    off = DeltaMemConfig(key_shift=False, read_gate="off", gate_floor=0.0, read_gate_bias_init=3.0).identity()
    assert not off.keys() & {"key_shift", "read_gate", "gate_floor", "read_gate_bias_init"}
    on = DeltaMemConfig()
    assert on.identity() == on.model_dump(mode="json")
    only_gate = DeltaMemConfig(key_shift=False, gate_floor=0.0).identity()
    assert only_gate.keys() & {"key_shift", "read_gate", "gate_floor", "read_gate_bias_init"} == {
        "read_gate",
        "read_gate_bias_init",
    }


def test_every_field_is_documented_under_itself() -> None:
    import ast
    import inspect

    body = ast.parse(inspect.getsource(DeltaMemConfig)).body[0]
    assert isinstance(body, ast.ClassDef)
    documented = {
        field.target.id
        for field, after in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(field.target, ast.Name)
    }
    assert documented == set(DeltaMemConfig.model_fields)


def test_a_bare_off_of_yaml_is_off() -> None:
    config = DeltaMemConfig.parse({"read_gate": False, "trainable_delta_scale": False})
    assert (config.read_gate, config.trainable_delta_scale) == ("off", "off")
