"""A tiny chat model, small enough to train in a test, and a recipe for it."""

from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.train import EpisodeMix, Recipe, Stage, Trainer
from tests.chat import byte_tokenizer, chat_backbone
from tests.train.runs import Make

SMALL = DeltaMemConfig(rank=4, num_state_heads=2)


def small_recipe(**changes: object) -> Recipe:
    stages = (
        Stage(steps=2, bare=0.5),
        Stage(
            steps=4,
            kinds={"told": 1, "updated": 1, "untold": 1, "labels": 1},
            facts=(1, 2),
            open_share=0.5,
            other_talk=1,
            labels=(2,),
            examples=(1,),
            unrelated_every=2,
            replay=0.2,
        ),
    )
    fields: dict[str, object] = {"stages": stages, "adapter": SMALL, "rows": 3, "unrelated": 2, "checkpoint_every": 2}
    fields |= {"evaluate_every": 3, "evaluate_episodes": 2, "evaluation": {"one": EpisodeMix()}}
    return Recipe.model_validate({**fields, **changes})


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


@pytest.fixture
def backbone() -> PreTrainedModel:
    return chat_backbone()


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Make:
    def build(folder: str = "run", **changes: object) -> Trainer:
        return Trainer(small_recipe(**changes), chat_backbone(), tokenizer, tmp_path / folder)

    return build
