"""Which fact is asked for: what the keys of values and the queries that ask for them say of it, on the bundled model.

Prints shares of pairs of facts that keys alone tell apart: `pytest -s -m slow tests/train/test_keys_that_bind.py`.
"""

import random

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents import DeltaMemAdapter, DeltaMemConfig, DeltaMemModel, bundled_is_cached
from deltamem_agents.adapter.default import default_adapter_path
from deltamem_agents.backbone.load import load_backbone
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.layer import DeltaMemLayer
from deltamem_agents.train import Values
from deltamem_agents.train.aligned import Pairs, align_heads, value_pairs, value_rows
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.facts import training_vocabulary

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model has not been fetched"),
]
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase, TrainingData]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    backbone, tokenizer = load_backbone("bundled", dtype=torch.bfloat16)
    return backbone, tokenizer, TrainingData(Values(training_vocabulary(tokenizer)))


@pytest.fixture(scope="module")
def pairs(loaded: Loaded) -> Pairs:
    """Facts that nothing was fitted to."""
    backbone, tokenizer, data = loaded
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(DeltaMemConfig(), backbone))
    with torch.no_grad():
        rows = value_rows(ChatTemplate(tokenizer), data, 150, random.Random("not fitted to"))
        found = value_pairs(model, rows, range(len(model.adapter.layers)))
    model.detach()
    return found


def told_apart(layer: DeltaMemLayer, pairs: Pairs, number: int, heads: range) -> float:
    """Share of pairs of value tokens in which a query agrees more with its own key than with the other's."""
    width, rank = layer.config.width, layer.config.rank

    def units(hidden: Tensor, block: int) -> Tensor:
        raw = hidden.float() @ layer.in_proj[block * width : (block + 1) * width].T
        return layer._unit(raw[None])[0][:, heads.start : heads.stop].reshape(len(hidden), len(heads) * rank)

    agreement = units(pairs.asked[:, number], 0) @ units(pairs.told[:, number], 1).T
    others = agreement.diagonal()[:, None] > agreement
    different = pairs.tokens[:, None] != pairs.tokens[None]
    return (others & different).sum().item() / different.sum().item()


@torch.no_grad()
def shares(adapter: DeltaMemAdapter, pairs: Pairs, heads: range) -> list[float]:
    return [told_apart(layer, pairs, n, heads) for n, layer in enumerate(adapter.layers.values())]


def shown(name: str, found: list[float]) -> None:
    layers = " ".join(f"{number}:{share:.2f}" for number, share in enumerate(found) if number % 3 == 0)
    print(f"{name}: mean {sum(found) / len(found):.3f}, by layer {layers}")


def test_aligned_keys_tell_facts_apart_and_random_ones_do_not(loaded: Loaded, pairs: Pairs) -> None:
    backbone, tokenizer, data = loaded
    adapter = DeltaMemAdapter.initialize(DeltaMemConfig(), backbone)
    random_keys = shares(adapter, pairs, range(4))
    model = DeltaMemModel(backbone, adapter)
    align_heads(model, ChatTemplate(tokenizer), data, heads=range(4), strength=0.05)
    aligned_keys = shares(adapter, pairs, range(4))
    model.detach()
    shown("random", random_keys)
    shown("aligned", aligned_keys)
    assert max(random_keys) < 0.7
    assert min(aligned_keys[12:]) > 0.8


def test_what_ships_tells_facts_apart_by_the_heads_that_began_aligned(pairs: Pairs) -> None:
    adapter = DeltaMemAdapter.from_pretrained(default_adapter_path("bundled")).to(torch.float32)
    first, added = shares(adapter, pairs, range(4)), shares(adapter, pairs, range(4, 8))
    shown("heads 0 to 3", first)
    shown("heads 4 to 7, which began aligned", added)
    assert sum(added[12:]) / 18 > 0.8
    assert sum(added[12:]) > sum(first[12:])
