"""The figures against what a real forward of the whole model keeps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PretrainedConfig, PreTrainedTokenizerBase, Qwen3Config

from deltamem_agents.adapter import DeltaMemAdapter
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.train import Recipe, Stage, Trainer, Values, training_vocabulary
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.features import AT_ONCE
from deltamem_agents.train.footprint import Footprint, footprint
from tests.chat import chat_backbone
from tests.train.conftest import small_recipe

QWEN3_4B = Qwen3Config(
    vocab_size=151936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)
"""The sizes of a model of 4 billion weights."""


def of(recipe: Recipe, config: PretrainedConfig, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase) -> Footprint:
    data = TrainingData.load((), Values(training_vocabulary(tokenizer)))
    return footprint(recipe, config, dtype, ChatTemplate(tokenizer), data)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_keeps_about_what_was_computed(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, checkpointing: bool
) -> None:
    backbone = chat_backbone(num_hidden_layers=8, hidden_size=256, intermediate_size=512)
    stage = Stage(steps=1, facts=(2,))
    adapter = DeltaMemConfig(rank=4, num_state_heads=2)
    recipe = small_recipe(stages=(stage,), rows=6, adapter=adapter, gradient_checkpointing=checkpointing)
    computed = of(recipe, backbone.config, torch.float32, tokenizer)
    trainer = Trainer(recipe, backbone, tokenizer, tmp_path)
    own = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in trainer.model.parameters()}
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    batch = trainer.objective.draw(0, trainer.rng)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.objective(batch)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    expected = computed.kept + computed.predictions
    if checkpointing:  # without the one layer that is computed once more
        expected = computed.replayed - computed.kept // 8 + computed.predictions
    assert 0.6 * expected < kept < 1.25 * expected  # computed for the largest of several batches
    assert sum(p.numel() * p.itemsize for p in backbone.parameters()) == computed.weights
    assert computed.learning == 16 * sum(p.numel() for p in trainer.model.adapter.parameters())


def test_four_billion_weights_fit_24_gb(tokenizer: PreTrainedTokenizerBase) -> None:
    four_bits = {"quantization_config": {"load_in_4bit": True}}
    adapter = DeltaMemConfig(num_state_heads=8)
    recipe = small_recipe(rows=16, adapter=adapter, gradient_checkpointing=True, model_kwargs=four_bits)
    small = of(recipe, QWEN3_4B, torch.bfloat16, tokenizer)
    assert small.total(checkpointing=True) < 24e9
    assert small.replayed < small.kept / 2
    large = of(recipe.model_copy(update={"model_kwargs": {}}), QWEN3_4B, torch.bfloat16, tokenizer)
    assert large.weights == pytest.approx(8.04e9, rel=0.01)
    assert small.weights == pytest.approx(2.8e9, rel=0.05)
    assert replace(large, weights=small.weights) == small
    aligned = of(recipe.model_copy(update={"align": 0.05}), QWEN3_4B, torch.bfloat16, tokenizer)
    assert 0 < aligned.aligning <= AT_ONCE
    assert aligned.total(checkpointing=True) < 24e9
    told = small.rows(checkpointing=True)
    assert told["at most at once"] == small.total(checkpointing=True)
    assert told["kept for backward, with gradient_checkpointing"] == small.replayed


def test_the_adapter_is_counted_as_it_will_be(tokenizer: PreTrainedTokenizerBase) -> None:
    backbone = chat_backbone()
    adapter = DeltaMemConfig(num_state_heads=4, delta_heads=("q", "o"))
    computed = of(small_recipe(adapter=adapter), backbone.config, torch.float32, tokenizer)
    weights = DeltaMemAdapter.initialize(adapter, backbone).parameters()
    assert computed.learning == 16 * sum(p.numel() for p in weights)
    assert computed.aligning == 0
