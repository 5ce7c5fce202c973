"""Adapter files: what is saved comes back, and what is damaged, foreign or dangerous does not."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel, backbone_fingerprint
from deltamem_agents.adapter.files import CONFIG_FILE, WEIGHTS_FILE
from deltamem_agents.errors import AdapterError
from tests.adapter.saved import BACKBONE, adapter_of, edit_config, files_in, same
from tests.builders import MECHANISMS, adapted, tiny, tokens

projections = st.sets(st.sampled_from("qkvo"), min_size=1).map(lambda found: tuple(sorted(found)))


class TestRoundTrip:
    @settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        options=st.fixed_dictionaries(
            {
                "rank": st.integers(1, 5),
                "num_state_heads": st.integers(1, 3),
                "delta_heads": projections,
                "couple_lambda": st.booleans(),
                "rankwise_gates": st.booleans(),
                "trainable_delta_scale": st.sampled_from(["off", "layer", "projection"]),
                "state_update_mode": st.sampled_from(["standard", "lambda_outside", "no_lambda"]),
                "write_granularity": st.sampled_from(["token", "message_mean", "sentence_mean"]),
                "target_layers": st.sampled_from([None, [0], [1], [1, 0]]),
                "absorb_roles": st.sampled_from([["user"], ["user", "tool", "assistant"]]),
                "alpha": st.floats(0.1, 64),
                "key_shift": st.booleans(),
                "read_gate": st.sampled_from(["off", "token", "match"]),
                "gate_floor": st.sampled_from([0.0, 0.3]),
            }
        ),
        rmsnorm=st.booleans(),
    )
    def test_any_config(self, tmp_path: Path, options: dict[str, object], rmsnorm: bool) -> None:
        adapter = adapter_of(**options, delta_o_rmsnorm=rmsnorm and "o" in options["delta_heads"])
        adapter.save_pretrained(tmp_path / "adapter")
        back = DeltaMemAdapter.from_pretrained(tmp_path / "adapter")
        assert back.config == adapter.config
        assert back.paths == adapter.paths
        assert back.backbone == adapter.backbone == backbone_fingerprint(BACKBONE)
        assert back.fingerprint() == adapter.fingerprint()
        assert same(back, adapter)

    def test_a_loaded_adapter_computes_the_same(self, saved: Path) -> None:
        ids = tokens(1, 9)
        with torch.no_grad():
            one, other = (DeltaMemModel(tiny(), a) for a in (adapter_of(), DeltaMemAdapter.from_pretrained(str(saved))))
            out, again = one(ids), other(ids)
        assert torch.equal(out.logits, again.logits)
        assert torch.equal(out.state.tensor, again.state.tensor)

    def test_depth_order_survives_ten_layers(self, tmp_path: Path) -> None:
        model = adapted(backbone=tiny(num_hidden_layers=12), rank=1)
        model.adapter.save_pretrained(tmp_path)
        assert DeltaMemAdapter.from_pretrained(tmp_path).paths == model.adapter.paths
        assert model.adapter.paths[-1] == "model.layers.11.self_attn"

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_the_fingerprint_is_the_same_in_every_dtype_that_holds_the_weights(
        self, tmp_path: Path, dtype: torch.dtype
    ) -> None:
        adapter = adapter_of()
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.copy_(parameter.bfloat16().half())  # fits both
        adapter.save_pretrained(tmp_path, dtype=dtype)
        assert {t.dtype for t in load_file(tmp_path / WEIGHTS_FILE).values()} == {dtype}
        back = DeltaMemAdapter.from_pretrained(tmp_path)
        assert {p.dtype for p in back.parameters()} == {torch.float32}
        assert back.fingerprint() == adapter.fingerprint() == back.to(dtype).fingerprint()

    def test_the_fingerprint_tells_weights_and_configs_apart(self) -> None:
        adapter = adapter_of()
        before = adapter.fingerprint()
        with torch.no_grad():
            adapter.layers["model.layers.1.self_attn"].in_proj[0, 0] += 1.0
        prints = {before, adapter.fingerprint(), adapter_of(alpha=3.0).fingerprint(), adapter_of(rank=3).fingerprint()}
        assert len(prints) == 4

    def test_saving_over_another_adapter(self, saved: Path) -> None:
        other = adapter_of(rank=3)
        other.save_pretrained(saved)
        assert same(DeltaMemAdapter.from_pretrained(saved), other)
        assert files_in(saved).keys() == {CONFIG_FILE, WEIGHTS_FILE}

    def test_others_may_read_the_files(self, saved: Path) -> None:
        modes = {stat.S_IMODE((saved / name).stat().st_mode) for name in (CONFIG_FILE, WEIGHTS_FILE)}
        mask = os.umask(0)
        os.umask(mask)
        assert modes == {0o666 & ~mask}


class TestFormats:
    OLD = MECHANISMS["published"]

    def as_format_1(self, folder: Path) -> None:
        """The folder as it was written before there were the options that are new in format 2."""
        config = json.loads((folder / CONFIG_FILE).read_text())["config"]
        for name in (*self.OLD, "read_gate_bias_init"):
            del config[name]
        edit_config(folder, format="deltamem-agents/1", config=config)

    def test_a_file_of_format_1_loads_with_the_new_options_off(self, tmp_path: Path) -> None:
        adapter = adapter_of(**self.OLD)
        adapter.save_pretrained(tmp_path)
        assert json.loads((tmp_path / CONFIG_FILE).read_text())["format"] == "deltamem-agents/2"
        self.as_format_1(tmp_path)
        back = DeltaMemAdapter.from_pretrained(tmp_path)
        assert same(back, adapter)
        assert {name: getattr(back.config, name) for name in self.OLD} == self.OLD
        assert back.fingerprint() == adapter.fingerprint()
        back.save_pretrained(tmp_path / "again")
        assert DeltaMemAdapter.from_pretrained(tmp_path / "again").fingerprint() == adapter.fingerprint()

    def test_a_file_of_format_1_has_no_tensors_of_format_2(self, tmp_path: Path) -> None:
        adapter_of().save_pretrained(tmp_path)
        self.as_format_1(tmp_path)
        with pytest.raises(AdapterError, match=r"unexpected tensors .*memory_k_shift_proj.*read_gate_bias"):
            DeltaMemAdapter.from_pretrained(tmp_path)

    def test_the_new_options_are_part_of_what_an_adapter_is(self) -> None:
        prints = {adapter_of(**self.OLD | {"gate_floor": floor}).fingerprint() for floor in (0.0, 0.2, 0.3)}
        assert len(prints) == 3

    def test_names_on_disk(self) -> None:
        ours = {"memory_k_shift_proj", "read_gate_proj", "read_gate_bias", "read_gate_match"}
        names = [
            {name.rpartition(".")[2] for name in adapter_of(**options).named_tensors()}
            for options in (MECHANISMS["gated"], self.OLD)
        ]
        assert names[0] - names[1] == ours
        assert not names[1] & ours


class TestPaths:
    @pytest.mark.parametrize("path", ["/nowhere/at/all", "./nothing", "~/nothing/here", "nothing", "a/b/c", ""])
    def test_nothing_there(self, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(AdapterError, match=r"no adapter at|has no delta_mem_config.json"):
            DeltaMemAdapter.from_pretrained(path)

    def test_a_path_object_is_never_a_hub_id(self, tmp_path: Path) -> None:
        with pytest.raises(AdapterError, match="no adapter at owner/name"):
            DeltaMemAdapter.from_pretrained(Path("owner/name"))
        with pytest.raises(AdapterError, match=f"{tmp_path} has no {CONFIG_FILE}"):
            DeltaMemAdapter.from_pretrained(tmp_path)

    def test_a_hub_id_that_cannot_be_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(AdapterError, match="no-such-owner/no-such-adapter is not a local folder, and could not be"):
            DeltaMemAdapter.from_pretrained("no-such-owner/no-such-adapter")
