import math
from pathlib import Path

import pytest

from deltamem_agents.errors import ConfigError
from deltamem_agents.train import Recipe, Stage


def test_stages_follow_each_other_and_the_rate_warms_up_and_falls() -> None:
    recipe = Recipe.model_validate({"stages": (Stage(steps=10), Stage(steps=30)), "optimiser": {"warm_up": 4}})
    assert (recipe.steps, recipe.start(1), recipe.stage(9), recipe.stage(10), recipe.stage(39)) == (40, 10, 0, 1, 1)
    top = recipe.optimiser.learning_rate
    assert recipe.rate(0) == pytest.approx(top / 4)
    assert recipe.rate(4) == pytest.approx(top)
    assert recipe.rate(22) == pytest.approx(top * (0.02 + 0.98 / 2 * (1 + math.cos(math.pi / 2))))
    assert recipe.rate(40) == pytest.approx(top * 0.02)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("stages: [{steps: 1, data_share: 0.5}]\ninit_adapter: old\ndata: [{format: babi, path: b}]\n")
    recipe = Recipe.load(path)
    assert recipe.init_adapter == tmp_path / "old"
    assert recipe.data[0].path == tmp_path / "b"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stages: [{steps: 1, fact: [1]}]", r"stages\.0\.fact: no such field; did you mean facts\?"),
        ("stages: [{steps: 1}]\nevaluation: {labels: {fact: [1]}}", r"labels\.fact: .*did you mean facts\?"),
        ("stages: [{steps: 1}]\nadapter: {rnk: 8}", r"adapter\.rnk: .*did you mean rank\?"),
        ("stages: [{steps: 1}]\nread_gate: token", r"read_gate: .*did you mean adapter\.read_gate\?"),
        ("stages: [{steps: 1}]\nlosses: {seed: 1}", r"losses\.seed: .*seed is the recipe's own"),
        ("stages: [{steps: 1}]\nqqq: 1", r"qqq: no such field \(`deltamem train --fields` lists all\)"),
        ("stages: [{steps: 1}]\ndata: [{format: chats, path: x}]", "no stage takes any: give one a data_share"),
        ("stages: []", r"stages: "),
        ("[1]", "expected the fields of a recipe"),
        ("stages: {", "cannot be read as YAML"),
        ("stages: [{steps: 1}]\nlosses: {answer: 0}", "nothing is learnt"),
        ("stages: [{steps: 1}]\nadapter: {rank: 0}", r"adapter\.rank"),
        ("stages: [{steps: 1}]\nkeep: 0.5", "keep is a share of init_adapter, which is missing"),
    ],
)
def test_a_bad_recipe_is_named_with_its_fields(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        Recipe.load(tmp_path / "r.yaml")


def test_single_fields_can_be_changed() -> None:
    changes = ["adapter.delta_heads=[o]", "stages.0.steps=5", "losses.margin=0.5", "align=0"]
    recipe = Recipe.load("ablation", changes=changes)
    base = Recipe.load("ablation")
    assert recipe.adapter == base.adapter.model_copy(update={"delta_heads": ("o",)})
    assert (recipe.steps, recipe.losses.margin, recipe.align) == (5, 0.5, 0.0)
    assert recipe.stages[0] == base.stages[0].model_copy(update={"steps": 5})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("seed", "expected a field, =, and its value"),
        ("stages.7.steps=1", "stages.7.steps=1' cannot be put into"),
        ("stages.first.steps=1", "cannot be put into"),
        ("model.name=x", "model has no fields"),
        ("seed={", "cannot be put into"),
        ("sead=1", r"sead: no such field; did you mean seed\?"),
        ("losses.idel=1", r"losses\.idel: no such field; did you mean idle\?"),
        ("adapter.rank=0", r"adapter\.rank"),
    ],
)
def test_a_bad_change_is_named(change: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Recipe.load("ablation", changes=[change])


def test_a_recipe_that_ships_starts_from_an_adapter_where_you_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load("distance", changes=["init_adapter=runs/default/adapter"])
    assert recipe.init_adapter == tmp_path / "runs/default/adapter"
    assert Recipe.load("harmless").init_adapter == tmp_path / "runs/distance/adapter"
    with pytest.raises(ConfigError, match="init_adapter, which is missing"):
        Recipe.load("distance")


def test_an_unknown_recipe_names_those_that_ship() -> None:
    with pytest.raises(ConfigError, match="ablation, default, distance, example, harmless"):
        Recipe.load("nothing")


@pytest.mark.parametrize("name", ["ablation", "default", "example", "harmless"])
def test_recipes_that_ship_are_valid(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.model == "bundled"
    assert recipe.steps > 100
