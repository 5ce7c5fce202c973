"""Adapter files: what is saved comes back, and what is damaged, foreign or dangerous does not."""

import json
import os
import pickle
import re
import shutil
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel, backbone_fingerprint
from deltamem_agents.adapter.files import CONFIG_FILE, PUBLISHED_WEIGHTS_FILE, WEIGHTS_FILE
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import AdapterError, ConfigError
from tests.builders import MECHANISMS, adapted, randomised, tiny, tokens

PUBLISHED = Path(__file__).parent.parent / "parity" / "qwen3_msw_qo"
BACKBONE = tiny()
projections = st.sets(st.sampled_from("qkvo"), min_size=1).map(lambda found: tuple(sorted(found)))


def adapter_of(**options: object) -> DeltaMemAdapter:
    return randomised(DeltaMemAdapter.initialize(DeltaMemConfig.parse({"rank": 2, **options}), BACKBONE))


def same(one: DeltaMemAdapter, other: DeltaMemAdapter) -> bool:
    weights, others = one.named_tensors(), other.named_tensors()
    return weights.keys() == others.keys() and all(torch.equal(others[name], t) for name, t in weights.items())


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    adapter_of().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    for name in (CONFIG_FILE, PUBLISHED_WEIGHTS_FILE):
        shutil.copyfile(PUBLISHED / name, folder / name)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    data = json.loads((folder / CONFIG_FILE).read_text()) | changes
    (folder / CONFIG_FILE).write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))


def edit_weights(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Replaces tensors (None takes one out), and tells the config that the file is meant to be so."""
    tensors = {k: v for k, v in (load_file(folder / WEIGHTS_FILE) | changes).items() if v is not None}
    save_file(tensors, folder / WEIGHTS_FILE)
    edit_config(folder, weights=...)


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


class TestPublished:
    def test_read(self, published: Path) -> None:
        adapter = DeltaMemAdapter.from_pretrained(published)
        tensors = torch.load(published / PUBLISHED_WEIGHTS_FILE, weights_only=True)
        ours = adapter.named_tensors()
        assert ours.keys() == tensors.keys()
        assert all(torch.equal(t, tensors[name].float()) for name, t in ours.items())
        assert adapter.backbone is None
        assert adapter.config.couple_lambda
        assert adapter.fingerprint() == "72f70e3d6b1e67b6", "sessions that were written under it are lost"
        assert set(adapter.config.absorb_roles) == {"system", "user", "assistant", "tool"}

    def test_saved_in_our_format(self, published: Path, tmp_path: Path) -> None:
        adapter = DeltaMemAdapter.from_pretrained(published)
        adapter.save_pretrained(tmp_path / "ours")
        again = DeltaMemAdapter.from_pretrained(tmp_path / "ours")
        assert same(again, adapter)
        assert again.fingerprint() == adapter.fingerprint()
        adapter.save_pretrained(published)  # over itself: the .pt file is no longer looked at
        assert DeltaMemAdapter.from_pretrained(published).fingerprint() == adapter.fingerprint()

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("num_memory_partitions", 2),
            ("memory_readout_mode", "context"),
            ("memory_reader_layers", [3]),
            ("delta_scale_parameterization", "alpha"),
            ("target_modules", ["mlp"]),
            ("slot_read_top_k", 4),
        ],
    )
    def test_archived_options_at_another_value(self, published: Path, key: str, value: object) -> None:
        edit_config(published, **{key: value})
        with pytest.raises(ConfigError, match=re.escape(f"{key} is {value!r}; this archived option")):
            DeltaMemAdapter.from_pretrained(published)

    def test_archived_options_may_be_left_out(self, published: Path) -> None:
        edit_config(published, num_memory_partitions=..., memory_reader_layers=..., online_gain=...)
        DeltaMemAdapter.from_pretrained(published)

    def test_unknown_options(self, published: Path) -> None:
        edit_config(published, shiny=1, brand_new=True)
        with pytest.raises(ConfigError, match=r"unknown options \['brand_new', 'shiny'\]"):
            DeltaMemAdapter.from_pretrained(published)

    @pytest.mark.parametrize("options", MECHANISMS.values(), ids=MECHANISMS)
    def test_our_own_options(self, published: Path, options: dict[str, object]) -> None:
        edit_config(published, **options)
        with pytest.raises(ConfigError, match=r"unknown options \['gate_floor', 'key_shift', 'read_gate'\]"):
            DeltaMemAdapter.from_pretrained(published)

    def test_impossible_options(self, published: Path) -> None:
        edit_config(published, rank=0)
        with pytest.raises(ConfigError, match=f"{CONFIG_FILE} is not a valid.*rank"):
            DeltaMemAdapter.from_pretrained(published)
        edit_config(published, rank=8, trainable_delta_scale=True, delta_scale_granularity="token")
        with pytest.raises(ConfigError, match="delta_scale_granularity is 'token'"):
            DeltaMemAdapter.from_pretrained(published)

    def test_a_pickle_that_runs_code_is_refused(self, published: Path, tmp_path: Path) -> None:
        class Malicious:
            def __reduce__(self) -> tuple[object, ...]:
                return os.mkdir, (str(tmp_path / "pwned"),)

        for write in (torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))):
            write({"model.layers.0.self_attn.beta_bias": Malicious()}, published / PUBLISHED_WEIGHTS_FILE)
            with pytest.raises(AdapterError, match="cannot be read as a plain dict of tensors"):
                DeltaMemAdapter.from_pretrained(published)
            assert not (tmp_path / "pwned").exists()

    @pytest.mark.parametrize("content", [{"a": {"b": torch.zeros(1)}}, [torch.zeros(1)], {"a": 1.0}])
    def test_not_a_flat_dict(self, published: Path, content: object) -> None:
        torch.save(content, published / PUBLISHED_WEIGHTS_FILE)
        with pytest.raises(AdapterError, match="flat dict of tensors"):
            DeltaMemAdapter.from_pretrained(published)


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
