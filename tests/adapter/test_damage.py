"""Adapter files that are damaged, foreign or dangerous, and saves that are cut off."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltamem_agents.adapter import DeltaMemAdapter
from deltamem_agents.adapter.files import CONFIG_FILE, PUBLISHED_WEIGHTS_FILE, WEIGHTS_FILE
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import AdapterError, ConfigError
from tests.adapter.saved import adapter_of, edit_config, files_in, same
from tests.builders import randomised


def edit_weights(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Replaces tensors (None takes one out), and tells the config that the file is meant to be so."""
    tensors = {k: v for k, v in (load_file(folder / WEIGHTS_FILE) | changes).items() if v is not None}
    save_file(tensors, folder / WEIGHTS_FILE)
    edit_config(folder, weights=...)


class TestDamage:
    name = "model.layers.1.self_attn.memory_k_proj"

    def refused(self, folder: Path, words: str) -> None:
        with pytest.raises(AdapterError, match=words):
            DeltaMemAdapter.from_pretrained(folder)

    def test_missing_tensors(self, saved: Path) -> None:
        edit_weights(saved, {self.name: None})
        self.refused(saved, r"model.layers.1.self_attn: missing tensors \['memory_k_proj'\], unexpected tensors \[\]")

    @pytest.mark.parametrize("name", ["memory_k_shift_proj", "read_gate_proj", "read_gate_bias", "read_gate_match"])
    def test_missing_tensors_of_format_2(self, tmp_path: Path, name: str) -> None:
        adapter_of(read_gate="match").save_pretrained(tmp_path)
        edit_weights(tmp_path, {f"model.layers.0.self_attn.{name}": None})
        self.refused(tmp_path, rf"model.layers.0.self_attn: missing tensors \['{name}'\], unexpected tensors \[\]")

    def test_a_layer_without_its_sizes(self, saved: Path) -> None:
        edit_weights(saved, {"model.layers.1.self_attn.delta_v_proj": None})
        self.refused(saved, r"model.layers.1.self_attn has tensors .*expected at least.*delta_v_proj")

    def test_unexpected_tensors(self, saved: Path) -> None:
        edit_weights(saved, {"model.layers.1.self_attn.extra": torch.zeros(1)})
        self.refused(saved, r"model.layers.1.self_attn: .* unexpected tensors \['extra'\]")

    def test_tensors_of_no_layer(self, saved: Path) -> None:
        edit_weights(saved, {"stray": torch.zeros(1)})
        self.refused(saved, r"\['stray'\]")

    def test_no_tensors(self, saved: Path) -> None:
        save_file({}, saved / WEIGHTS_FILE)
        edit_config(saved, weights=...)
        self.refused(saved, "no memory layers")

    @pytest.mark.parametrize("shape", [(3, 32), (8, 31), (8,), ()])
    def test_misshapen_tensors(self, saved: Path, shape: tuple[int, ...]) -> None:
        edit_weights(saved, {self.name: torch.zeros(shape)})
        self.refused(saved, r"model.layers.1.self_attn: misshapen .*memory_k_proj.*\[8, 32\]")

    def test_misshapen_sizes(self, saved: Path) -> None:
        edit_weights(saved, {"model.layers.1.self_attn.memory_q_proj": torch.zeros(8)})
        self.refused(saved, "model.layers.1.self_attn has tensors")

    @pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
    def test_values_that_are_not_finite(self, saved: Path, bad: float) -> None:
        edit_weights(saved, {self.name: torch.full((8, 32), bad)})
        self.refused(saved, f"{self.name} holds values that are not finite")

    def test_values_that_are_no_floats(self, saved: Path) -> None:
        edit_weights(saved, {self.name: torch.zeros(8, 32, dtype=torch.int8)})
        self.refused(saved, f"not floating-point numbers.*{self.name} torch.int8")

    def test_truncated_weights(self, saved: Path) -> None:
        data = (saved / WEIGHTS_FILE).read_bytes()
        for length in (0, 4, 100, len(data) - 1):
            (saved / WEIGHTS_FILE).write_bytes(data[:length])
            self.refused(saved, f"{WEIGHTS_FILE} cannot be read")

    def test_changed_weights(self, saved: Path) -> None:
        data = bytearray((saved / WEIGHTS_FILE).read_bytes())
        data[-3] ^= 1
        (saved / WEIGHTS_FILE).write_bytes(data)
        self.refused(saved, "has sha256 .* expects .*changed")

    def test_no_weights(self, saved: Path, published: Path) -> None:
        (saved / WEIGHTS_FILE).unlink()
        self.refused(saved, f"goes with {WEIGHTS_FILE}, but no such file")
        (published / PUBLISHED_WEIGHTS_FILE).unlink()
        self.refused(published, f"goes with {PUBLISHED_WEIGHTS_FILE}, but no such file")

    def test_training_runs_that_have_not_ended(self, tmp_path: Path) -> None:
        self.refused(tmp_path, "it is not a delta-mem adapter")
        for file in ("log.jsonl", "checkpoint.pt"):
            (tmp_path / file).write_text("")
            self.refused(tmp_path, "is a training run without a finished adapter: go on with deltamem train, or name")
            (tmp_path / file).unlink()

    @pytest.mark.parametrize("text", ["", "{", "\x00", "[]", '"x"', "null"])
    def test_config_files_that_are_no_object(self, saved: Path, text: str) -> None:
        (saved / CONFIG_FILE).write_text(text)
        self.refused(saved, f"{CONFIG_FILE} (cannot be read as JSON|holds a)")

    def test_config_files_that_are_no_text(self, saved: Path) -> None:
        (saved / CONFIG_FILE).write_bytes(b"\xff\xfe\x00")
        self.refused(saved, "cannot be read as JSON")

    def test_another_format(self, saved: Path) -> None:
        edit_config(saved, format="deltamem-agents/3")
        self.refused(saved, "format 'deltamem-agents/3', expected 'deltamem-agents/2'")

    @pytest.mark.parametrize("changes", [{"config": ...}, {"backbone": ...}, {"comment": "mine"}])
    def test_missing_and_unknown_keys(self, saved: Path, changes: dict[str, object]) -> None:
        edit_config(saved, **changes)
        self.refused(saved, "has keys .*, expected format, backbone, weights and config")

    def test_unknown_options(self, saved: Path) -> None:
        edit_config(saved, config={"shiny": 1})
        with pytest.raises(ConfigError, match=f"{CONFIG_FILE} is not a valid.*shiny: Extra inputs"):
            DeltaMemAdapter.from_pretrained(saved)

    def test_a_config_that_does_not_go_with_the_weights(self, saved: Path) -> None:
        edit_config(saved, config=DeltaMemConfig(rank=4).model_dump(mode="json"))
        self.refused(saved, "misshapen")


class TestSaving:
    def test_values_the_dtype_cannot_hold(self, saved: Path) -> None:
        before, adapter = files_in(saved), adapter_of()
        with torch.no_grad():
            adapter.layers["model.layers.0.self_attn"].gate_bias[0] = 1e6
        with pytest.raises(AdapterError, match=r"layers.0.self_attn.beta_bias as torch.float16 .*not saved"):
            adapter.save_pretrained(saved, dtype=torch.float16)
        assert files_in(saved) == before

    def test_a_crash_before_the_first_move_leaves_the_old_files_whole(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = files_in(saved)
        monkeypatch.setattr(os, "replace", Crash(after=0))
        with pytest.raises(KeyboardInterrupt):
            adapter_of(rank=3).save_pretrained(saved)
        assert files_in(saved) == before

    def test_a_crash_between_the_moves_is_found(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a config of the same sizes nothing else would show that the two files belong to different saves."""
        other = randomised(adapter_of(alpha=1.0), seed=1)
        monkeypatch.setattr(os, "replace", Crash(after=1))
        with pytest.raises(KeyboardInterrupt):
            other.save_pretrained(saved)
        monkeypatch.undo()
        with pytest.raises(AdapterError, match="save was cut off between the two"):
            DeltaMemAdapter.from_pretrained(saved)
        other.save_pretrained(saved)
        assert same(DeltaMemAdapter.from_pretrained(saved), other)

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(AdapterError, match="cannot be saved in"):
            adapter_of().save_pretrained(tmp_path / "file")

    def test_a_full_disk_leaves_the_old_files_whole(self, saved: Path) -> None:
        resource = pytest.importorskip("resource")
        import signal

        before, limits = files_in(saved), resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(AdapterError, match=r"cannot be saved in .*too large"):
                adapter_of(rank=3).save_pretrained(saved)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert files_in(saved) == before


class Crash:
    """Stands in for os.replace, and ends the program's run after some moves."""

    def __init__(self, *, after: int) -> None:
        self.left, self.replace = after, os.replace

    def __call__(self, source: Path, target: Path) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.replace(source, target)
