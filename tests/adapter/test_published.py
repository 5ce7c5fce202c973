"""Adapters in the published format."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch

from deltamem_agents.adapter import DeltaMemAdapter
from deltamem_agents.adapter.files import CONFIG_FILE, PUBLISHED_WEIGHTS_FILE
from deltamem_agents.errors import AdapterError, ConfigError
from tests.adapter.saved import edit_config, same
from tests.builders import MECHANISMS


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
