from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from deltamem_agents.errors import BackboneError, ConfigError
from deltamem_agents.train.backbone import placed, recipe_backbone, recipe_shapes, replay_layers
from tests.builders import tiny
from tests.chat import chat_backbone
from tests.train.conftest import small_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    path = tmp_path_factory.mktemp("model")
    chat_backbone().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_recipe_says_how_its_model_is_loaded(folder: Path) -> None:
    kwargs = {"attn_implementation": "eager", "device_map": {"": "cpu"}}
    recipe = small_recipe(model=str(folder), dtype="bfloat16", model_kwargs=kwargs)
    backbone, _ = recipe_backbone(recipe, CPU)
    assert backbone.config._attn_implementation == "eager"
    assert backbone.dtype == torch.bfloat16
    elsewhere = torch.device("meta")
    assert placed(backbone, elsewhere, recipe).device == CPU
    assert placed(backbone, elsewhere, small_recipe()).device == elsewhere


def test_a_model_in_several_places_is_refused(folder: Path, tmp_path: Path) -> None:
    kwargs = {"device_map": {"model": "cpu", "lm_head": "disk"}, "offload_folder": str(tmp_path)}
    with pytest.raises(ConfigError, match="on cpu, disk: training needs all of it on one device"):
        recipe_backbone(small_recipe(model=str(folder), model_kwargs=kwargs), CPU)


def test_what_transformers_does_not_take_is_named(folder: Path) -> None:
    with pytest.raises(BackboneError, match=r"could not be loaded .*no_such_option"):
        recipe_backbone(small_recipe(model=str(folder), model_kwargs={"no_such_option": 1}), CPU)


def test_shapes_come_without_weights(folder: Path, tmp_path: Path) -> None:
    config, _ = recipe_shapes(small_recipe(model=str(folder)))
    assert config.hidden_size == 32
    with pytest.raises(BackboneError, match="cannot be read"):
        recipe_shapes(small_recipe(model=str(tmp_path)))


def test_shapes_of_a_folder_that_is_not_there_or_has_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"there is no folder \./nowhere: check the path"):
        recipe_shapes(small_recipe(model="./nowhere"))
    chat_backbone().config.save_pretrained(tmp_path)
    says = rf"^{tmp_path} has a config but no tokenizer \(tokenizer\.json or tokenizer\.model\): copy it from"
    with pytest.raises(BackboneError, match=says):
        recipe_shapes(small_recipe(model=str(tmp_path)))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(BackboneError, match=says):
        recipe_shapes(small_recipe(model=str(tmp_path)))


def test_layers_are_replayed_once_also_when_asked_twice() -> None:
    backbone = tiny()
    replay_layers(backbone)
    forwards = [layer.forward for layer in backbone.get_decoder().layers]
    replay_layers(backbone)
    assert [layer.forward for layer in backbone.get_decoder().layers] == forwards
    assert not any(module.training for module in backbone.modules())
    with pytest.raises(ConfigError, match="Linear has no layers that can be computed once more"):
        replay_layers(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
