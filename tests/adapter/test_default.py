"""The adapter that ships for a model is found by what the model is: its weights in a folder, or its id on the hub."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltamem_agents import AdapterError, BackboneError
from deltamem_agents.adapter import DeltaMemAdapter
from deltamem_agents.adapter.default import SHIPPED, default_adapter_path, shipped_adapters
from deltamem_agents.adapter.made_for import BLOCK, MadeFor, record
from deltamem_agents.backbone.bundled import MODEL_ID, bundled_is_cached, bundled_path
from tests.builders import adapted, tiny

OWNER = "owner/tiny-instruct"
WEIGHTS = "model.safetensors"
Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights were saved in bfloat16; random norms, as trained ones are."""
    folder = tmp_path_factory.mktemp("model")
    backbone = tiny().to(torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        if parameter.dim() == 1:
            parameter.data = torch.empty(parameter.shape).normal_(1.0, 0.3, generator=generator).to(torch.bfloat16)
    backbone.save_pretrained(folder)
    return folder


def shipping(folder: Path, model: Path, *names: str, quantised: float = 0.0) -> Path:
    """A folder of adapters that ship, with one for the model."""
    adapted(backbone=tiny()).adapter.save_pretrained(folder / "tiny")
    record(folder / "tiny", model, models=names or (OWNER,), quantised=quantised)
    return folder


@pytest.fixture
def adapters(tmp_path: Path, model: Path) -> Path:
    return shipping(tmp_path / "adapters", model)


def copied(model: Path, folder: Path, change: Change) -> Path:
    """Another folder of the model, with other weights."""
    shutil.copytree(model, folder)
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)
    return folder


def stored_as(dtype: torch.dtype) -> Change:
    return lambda weights: weights.update({name: tensor.to(dtype) for name, tensor in weights.items()})


def tuned(part: str, share: float) -> Change:
    """Moves one kind of weight in all layers by so much of its size, as a fine-tune does."""

    def change(weights: dict[str, Tensor]) -> None:
        draw = torch.Generator().manual_seed(2)
        for name, tensor in weights.items():
            if part in name:
                moved = tensor.float() + share * tensor.float().std() * torch.randn(tensor.shape, generator=draw)
                weights[name] = moved.to(tensor.dtype)

    return change


def quantised_as(levels: int) -> Change:
    """Blocks of 32 in so many steps between the smallest and the largest weight, as GGUF's Q4_1 has 16."""

    def change(weights: dict[str, Tensor]) -> None:
        for name, tensor in weights.items():
            if tensor.dim() == 2 and tensor.shape[-1] % BLOCK == 0:
                blocks = tensor.float().reshape(-1, BLOCK)
                low = blocks.amin(-1, keepdim=True).half().float()
                step = ((blocks.amax(-1, keepdim=True) - low) / (levels - 1)).half().float()
                weights[name] = (low + step * ((blocks - low) / step).round()).reshape(tensor.shape)

    return change


class TestFolders:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_a_copy_in_any_type_under_any_name(
        self, dtype: torch.dtype, model: Path, adapters: Path, tmp_path: Path
    ) -> None:
        folder = copied(model, tmp_path / "whatever it is called", stored_as(dtype))
        for named in (folder, str(folder)):
            assert default_adapter_path(named, among=adapters) == adapters / "tiny"

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_copy_of_what_was_saved_in_float32(self, dtype: torch.dtype, tmp_path: Path) -> None:
        tiny().save_pretrained(tmp_path / "model")
        adapters = shipping(tmp_path / "adapters", tmp_path / "model")
        folder = copied(tmp_path / "model", tmp_path / "copy", stored_as(dtype))
        assert default_adapter_path(folder, among=adapters) == adapters / "tiny"

    def test_the_original_where_the_adapter_was_made_for_a_quantised_copy(self, model: Path, tmp_path: Path) -> None:
        quantised = copied(model, tmp_path / "quantised", quantised_as(16))
        adapters = shipping(tmp_path / "adapters", quantised)
        for folder in (model, quantised):
            assert default_adapter_path(folder, among=adapters) == adapters / "tiny"

    def test_the_snapshot_of_a_hub_cache(self, model: Path, adapters: Path, tmp_path: Path) -> None:
        """Links to files that are named by their hash."""
        repository = tmp_path / "models--somebody--else"
        snapshot = repository / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir()
        for number, file in enumerate(sorted(model.iterdir())):
            shutil.copy(file, repository / "blobs" / str(number))
            (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
        assert default_adapter_path(snapshot, among=adapters) == adapters / "tiny"

    def test_weights_in_several_files(self, adapters: Path, tmp_path: Path, model: Path) -> None:
        folder = tmp_path / "sharded"
        shutil.copytree(model, folder)
        weights = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        parts: dict[str, dict[str, Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
        for number, (name, tensor) in enumerate(sorted(weights.items())):
            parts["ab"[number % 2] + ".safetensors"][name] = tensor
        for file, part in parts.items():
            save_file(part, folder / file)
        where = {name: file for file, part in parts.items() for name in part}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": where}))
        assert default_adapter_path(folder, among=adapters) == adapters / "tiny"

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("part", ["layernorm", "q_proj", "v_proj", "up_proj"])
    def test_a_fine_tune_gets_none(
        self, part: str, dtype: torch.dtype, model: Path, adapters: Path, tmp_path: Path
    ) -> None:
        """Also where it moved one kind of matrix alone, by 3 % of its size, and is called like the original."""

        def change(weights: dict[str, Tensor]) -> None:
            stored_as(torch.float32)(weights)
            tuned(part, 0.03)(weights)
            stored_as(dtype)(weights)

        folder = copied(model, tmp_path / "tiny", change)
        says = (
            rf"no adapter ships for .*: it is built as {OWNER}, but its weights are others, as a fine-tune's are: \d+ "
            rf"of \d+ .*{part}.*Those that ship: tiny for {OWNER}\. Name an adapter.*adapter=….*train one"
        )
        with pytest.raises(AdapterError, match=says):
            default_adapter_path(folder, among=adapters)

    def test_weights_that_are_no_numbers_are_others(self, model: Path, adapters: Path, tmp_path: Path) -> None:
        folder = copied(model, tmp_path / "copy", lambda weights: [w.fill_(torch.nan) for w in weights.values()])
        with pytest.raises(AdapterError, match="its weights are others"):
            default_adapter_path(folder, among=adapters)

    def test_a_model_of_another_kind_by_the_name_of_this_one(self, adapters: Path, tmp_path: Path) -> None:
        other = tiny("Qwen3")
        other.save_pretrained(tmp_path / "owner" / "tiny-instruct")
        with pytest.raises(AdapterError, match=rf"it is a qwen3-2x32-4q2kv-v96\. Those that ship: tiny for {OWNER}"):
            default_adapter_path(tmp_path / "owner" / "tiny-instruct", among=adapters)

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda folder: (folder / WEIGHTS).unlink(), "it has no model.safetensors, in which"),
            (lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 100), "its model.safetensors cannot be read"),
            (lambda folder: save_file({}, folder / WEIGHTS), r"it has no model\.layers\.1\."),
            (lambda folder: (folder / f"{WEIGHTS}.index.json").write_text("{"), "index.json cannot be read"),
            (lambda folder: (folder / "config.json").unlink(), "its config.json cannot be read as"),
            (lambda folder: (folder / "config.json").write_text("{"), "its config.json cannot be read as"),
        ],
    )
    def test_folders_in_which_nothing_can_be_looked_at(
        self, damage: Callable[[Path], object], says: str, model: Path, adapters: Path, tmp_path: Path
    ) -> None:
        folder = shutil.copytree(model, tmp_path / "damaged")
        damage(folder)
        with pytest.raises(AdapterError, match=f"no adapter ships for .*{says}"):
            default_adapter_path(folder, among=adapters)

    def test_no_code_of_a_model_runs(self, model: Path, adapters: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(model, tmp_path / "foreign")
        (folder / "code.py").write_text("raise SystemExit('ran')")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps(config | {"model_type": "foreign", "auto_map": {"AutoConfig": "code.Config"}})
        )
        with pytest.raises(AdapterError, match="trust_remote_code"):
            default_adapter_path(folder, among=adapters)


class TestQuantisedInAWayThatKeepsNoWeight:
    """The sample is of a model dequantised from GGUF's K types; the user has the original, or another copy."""

    @pytest.fixture
    def loosely(self, model: Path, tmp_path: Path) -> Path:
        def change(weights: dict[str, Tensor]) -> None:
            kept = {name: tensor for name, tensor in weights.items() if tensor.dim() == 1}
            tuned("proj", 0.02)(weights)
            weights.update(kept)

        return shipping(tmp_path / "loosely", copied(model, tmp_path / "K", change), quantised=0.06)

    def test_the_original_is_found_and_a_warning_says_how_far_it_is_off(self, model: Path, loosely: Path) -> None:
        with pytest.warns(UserWarning, match=rf"taken for a copy of {OWNER}.*0\.\d% off.*If it is a fine-tune"):
            assert default_adapter_path(model, among=loosely) == loosely / "tiny"

    def test_the_copy_itself_is_found_without_one(self, loosely: Path, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert default_adapter_path(tmp_path / "K", among=loosely) == loosely / "tiny"

    @pytest.mark.parametrize(("part", "says"), [("layernorm", "fine-tune's are"), ("proj", "explains 6%")])
    def test_others_are_not(self, part: str, says: str, model: Path, loosely: Path, tmp_path: Path) -> None:
        folder = copied(model, tmp_path / "other", tuned(part, 0.5))
        with pytest.raises(AdapterError, match=says):
            default_adapter_path(folder, among=loosely)


class TestNames:
    @pytest.mark.parametrize("name", [OWNER, "Owner/Tiny-Instruct", "nickname"])
    def test_an_id_of_the_hub_alone(self, name: str, model: Path, tmp_path: Path) -> None:
        adapters = shipping(tmp_path / "adapters", model, OWNER, "nickname")
        assert default_adapter_path(name, among=adapters) == adapters / "tiny"

    @pytest.mark.parametrize("name", ["owner/tiny", "other/tiny-instruct", "tiny", ""])
    def test_ids_of_others(self, name: str, adapters: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(AdapterError, match=rf"no adapter ships for .*Those that ship: tiny for {OWNER}\. Name an"):
            default_adapter_path(name or "owner/", among=adapters)

    @pytest.mark.parametrize("name", ["/no/such", "./nothing", "~/nothing", Path("nothing")])
    def test_folders_that_are_not_there(self, name: str | Path, adapters: Path) -> None:
        with pytest.raises(BackboneError, match=r"there is no folder .*expected"):
            default_adapter_path(name, among=adapters)

    def test_a_folder_of_that_name_counts_as_the_folder(
        self, model: Path, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As it does where the model is loaded."""
        monkeypatch.chdir(tmp_path)
        copied(model, tmp_path / OWNER, tuned("proj", 0.1))
        with pytest.raises(AdapterError, match="its weights are others"):
            default_adapter_path(OWNER, among=adapters)


def test_tensors_that_were_quantised_otherwise_are_left_out(adapters: Path, model: Path, tmp_path: Path) -> None:
    copy = copied(model, tmp_path / "copy", tuned("v_proj", 0.1))
    with pytest.raises(AdapterError, match="v_proj"):
        default_adapter_path(copy, among=adapters)
    record(adapters / "tiny", model, models=[OWNER], without=["v_proj"])
    assert default_adapter_path(copy, among=adapters) == adapters / "tiny"


def test_an_adapter_that_does_not_say_what_it_is_for_is_named(adapters: Path) -> None:
    (adapters / "tiny" / "made_for.json").unlink()
    with pytest.raises(AdapterError, match=r"made_for\.json cannot be read.*write it with .*made_for\.record"):
        default_adapter_path("x/y", among=adapters)


def test_what_cannot_be_recorded(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match="no layers that can be sampled"):
        record(tmp_path, tmp_path, models=[OWNER])


def test_every_adapter_that_ships_says_what_it_is_for() -> None:
    found = list(shipped_adapters())
    assert {adapter.folder for adapter in found} == {path for path in SHIPPED.iterdir() if path.is_dir()}
    assert {MODEL_ID, "bundled"} <= {name for adapter in found for name in adapter.made_for.models}
    for adapter in found:
        assert DeltaMemAdapter.from_pretrained(adapter.folder).backbone == adapter.backbone
        assert default_adapter_path(adapter.model) == adapter.folder
        assert len(adapter.made_for.sample) >= 4


@pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model is not on this machine")
def test_the_bundled_models_folder_and_the_sample_that_ships(tmp_path: Path) -> None:
    """The sample also fits what was there before quantising: each block's largest weight, in bfloat16."""
    folder = default_adapter_path("bundled")
    assert default_adapter_path(bundled_path()) == folder
    assert record(tmp_path, bundled_path(), models=[MODEL_ID, "bundled"]).read_text() == (
        folder / "made_for.json"
    ).read_text()
    for values in MadeFor.read(folder).sample.values():
        found = torch.tensor(values)
        unit = torch.exp2(found.abs().log2().floor() - 7)
        assert ((found - found.bfloat16().float()).abs() < 0.25 * unit).all()
