from pydantic import BaseModel

from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.train import EpisodeMix, Losses, Optimiser, Recipe, Source, Stage
from deltamem_agents.train.fields import reference


def test_the_reference_has_every_field_with_its_words() -> None:
    text = reference(Recipe)
    sections = {title: body for title, _, body in (part.split("\n", 2) for part in text.split("\n\n"))}
    models: dict[str, type[BaseModel]] = {
        "recipe": Recipe,
        "adapter": DeltaMemConfig,
        "stages.0": Stage,
        "data.0": Source,
        "losses": Losses,
        "optimiser": Optimiser,
    }
    assert sections.keys() == {*models, "evaluation.NAME"}
    for name, model in models.items():
        listed = [line.split(":")[0] for line in sections[name].splitlines() if not line.startswith(" ")]
        assert listed == list(model.model_fields)
    assert f"facts to {list(EpisodeMix.model_fields)[-1]}, as in stages.0" in sections["evaluation.NAME"]
    assert all(len(line) <= 80 for line in text.splitlines())
    for line in (
        "rank: integer from 1 to 256 = 8\n    r: each state matrix is r×r.",
        "steps: integer of at least 1 (required)\n",
        "above: number or null from 0 to 1 = null\n",
        "stages: list of Stage, see below, not empty (required)\n",
        "dtype: auto | float32 | bfloat16 = auto\n",
        "betas: 2 of number = [0.9, 0.98]\n",
        "learning_rate: number above 0 = 0.002\n",
        "path: path (required)\n",
        "facts: list of integer, not empty = [1]\n    Numbers of facts, drawn uniformly.",
    ):
        assert line in text
