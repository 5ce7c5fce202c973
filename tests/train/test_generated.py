"""What the plain backbone says is generated once: kept by model, prompts and settings."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents import DeltaMemAdapter
from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.messages import Message
from deltamem_agents.train.generated import ROWS, generate
from tests.chat import chat_backbone
from tests.train.conftest import SMALL

TEXTS = ["Hi.", "What is a river?", "Name three fruits."]
PROMPTS = [(Message(role="user", content=text),) for text in TEXTS]


@pytest.fixture
def model(backbone: PreTrainedModel) -> DeltaMemModel:
    return DeltaMemModel(backbone, DeltaMemAdapter.initialize(SMALL, backbone))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.json"))


def test_what_was_generated_is_read_again_and_nothing_else(
    model: DeltaMemModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    template = ChatTemplate(tokenizer)
    first = generate(model, template, PROMPTS, length=4, cache_dir=tmp_path)
    (file,) = _files(tmp_path)
    file.write_text('["one", "two", "three"]')
    assert generate(model, template, PROMPTS, length=4, cache_dir=tmp_path) == ["one", "two", "three"]
    assert generate(model, template, PROMPTS, length=5, cache_dir=tmp_path) != ["one", "two", "three"]
    assert generate(model, template, PROMPTS[:2], length=4, cache_dir=tmp_path) != ["one", "two"]
    assert generate(model, template, PROMPTS, length=4, seed=1, cache_dir=tmp_path) != ["one", "two", "three"]
    for text in ("[", '["one"]', '{"a": 1}', "[1, 2, 3]"):
        file.write_text(text)
        assert generate(model, template, PROMPTS, length=4, cache_dir=tmp_path) == first, text


def test_another_models_texts_are_others(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    template = ChatTemplate(tokenizer)
    for _ in range(2):
        for change in (0.0, 0.5):
            backbone = chat_backbone()
            with torch.no_grad():
                next(iter(backbone.parameters())).add_(change)
            changed = DeltaMemModel(backbone, DeltaMemAdapter.initialize(SMALL, backbone))
            generate(changed, template, PROMPTS, length=4, cache_dir=tmp_path)
    assert len(_files(tmp_path)) == 2


def test_progress_goes_to_the_end_and_a_folder_that_cannot_be_written_stops_nothing(
    model: DeltaMemModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    count, seen = ROWS + 3, list[tuple[int, int]]()
    (tmp_path / "generated").write_text("a file where the folder should be")
    for _ in range(2):
        found = generate(
            model, ChatTemplate(tokenizer), [()] * count, length=2, seed=0, cache_dir=tmp_path,
            progress=lambda done, total: seen.append((done, total)),
        )  # fmt: skip
        assert len(found) == count
    assert seen == [(0, count), (ROWS, count), (count, count)] * 2
