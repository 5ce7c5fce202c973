import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import TrainingError
from deltamem_agents.train import EpisodeMix, Values, features
from deltamem_agents.train.aligned import align_heads
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.features import Features
from deltamem_agents.train.fits import separator, shared_directions, token_code
from deltamem_agents.train.writing import write_memories
from tests.builders import MECHANISMS

DATA = TrainingData(Values(["harbor", "velvet", "saddle", "pigeon", "copper"]))
CONFIGS = {
    name: DeltaMemConfig.parse({"rank": 4, "num_state_heads": 4, **options}) for name, options in MECHANISMS.items()
}


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_what_two_views_share_is_found_behind_a_large_common_part(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    cause = torch.randn(600, 3, generator=g)
    first = cause @ torch.randn(3, 12, generator=g) + 0.3 * torch.randn(600, 12, generator=g) + 20.0
    second = cause @ torch.randn(3, 12, generator=g) + 0.3 * torch.randn(600, 12, generator=g) - 20.0
    found = shared_directions(first[:400], second[:400], count=3, ridge=0.1)
    a, b = first[400:] @ found.first.T, second[400:] @ found.second.T  # what it was not fitted to
    agreement = torch.nn.functional.normalize(a, dim=-1) @ torch.nn.functional.normalize(b, dim=-1).T
    assert agreement.diagonal().mean() > 0.8
    assert agreement.mean().abs() < 0.2
    assert (a.mean(0).abs() < 0.5).all(), "the common part is left out"


def test_a_code_leads_back_to_its_token() -> None:
    g = torch.Generator().manual_seed(0)
    embedding = torch.nn.functional.normalize(torch.randn(20, 16, generator=g), dim=-1)
    tokens = torch.randint(20, (500,), generator=g)
    hidden = embedding[tokens] @ torch.randn(16, 40, generator=g) + 5.0
    code = token_code(hidden, embedding[tokens], count=12, ridge=1e-4)
    back = (hidden - hidden.mean(0)) @ code.encode.T @ code.decode + embedding[tokens].mean(0)
    assert ((back @ embedding.T).argmax(-1) == tokens).float().mean() > 0.95


def test_gates_are_told_apart() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=g) + 3.0
    on = x[:, 2] > 4
    weights, bias = separator(x, on, low=-4.0, high=2.0)
    scores = x @ weights + bias
    assert scores[on].mean() == pytest.approx(2.0, abs=1e-3)
    assert scores[~on].mean() == pytest.approx(-4.0, abs=1e-3)


def aligned(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: DeltaMemConfig
) -> DeltaMemModel:
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(config, backbone))
    align_heads(model, ChatTemplate(tokenizer), DATA, heads=range(2, 4), strength=0.05, facts=60)
    return model


def test_layers_are_fitted_in_groups_as_all_at_once(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    whole = aligned(backbone, tokenizer, CONFIGS["gated"])
    whole.detach()
    monkeypatch.setattr(features, "AT_ONCE", 1)
    torch.manual_seed(0)
    each = aligned(backbone, tokenizer, whole.adapter.config)
    assert len(features.layer_groups(each, 1)) == len(each.adapter.layers) > 1
    for (name, one), other in zip(whole.adapter.named_parameters(), each.adapter.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize("mechanism", CONFIGS)
def test_only_the_named_heads_change_and_gates_open_at_values(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mechanism: str
) -> None:
    config = CONFIGS[mechanism]
    model = aligned(backbone, tokenizer, config)
    weights = {name: p.detach().clone() for name, p in model.adapter.named_parameters()}
    model.detach()
    fresh, rank = DeltaMemAdapter.initialize(config, backbone), config.rank
    for number, layer in enumerate(fresh.layers.values()):
        new = weights[f"_layers.{number}.in_proj"]
        for name, block in layer.block.items():
            named = slice(block.start + (block.stop - block.start) // 2, block.stop)
            assert torch.equal(new[block.start : named.start], layer.in_proj[block.start : named.start])
            if block.stop > block.start and name != "lambda":
                assert not torch.equal(new[named], layer.in_proj[named]), name
        assert torch.equal(weights[f"_layers.{number}.delta.o"][:, : 2 * rank], layer.delta["o"][:, : 2 * rank])
        assert all(torch.isfinite(w).all() for w in weights.values())

    episodes = [DATA.generate(EpisodeMix(), random.Random(n), split="test") for n in range(20)]
    again = aligned(backbone, tokenizer, config)
    for name, parameter in again.adapter.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach())  # the seed decides it
    written = write_memories(Features(again), ChatTemplate(tokenizer), [e.earlier for e in episodes], together=False)
    template = ChatTemplate(tokenizer)
    ids = [[i for s in template.render(e.earlier) if s.message is not None for i in s.ids] for e in episodes]
    inside, outside = [], []
    for row, episode in enumerate(episodes):
        text = str(tokenizer.decode(ids[row]))
        start = len(tokenizer.encode(text[: text.index(episode.value)], add_special_tokens=False))
        value = range(start, start + len(tokenizer.encode(episode.value, add_special_tokens=False)))
        for place in range(len(ids[row])):
            (inside if place in value else outside).append(written.beta[row, place].item())
    assert sum(inside) / len(inside) > 1.2 * sum(outside) / len(outside)


def test_a_tokenizer_without_common_tokens_is_named(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(CONFIGS["gated"], backbone))
    plain = tokenizer.encode
    # a tokenizer that marks the start of every text
    monkeypatch.setattr(type(tokenizer), "encode", lambda self, text, **kwargs: [0, *plain(text, **kwargs)])
    with pytest.raises(TrainingError, match=r"same tokens in statement and answer.*set align to 0"):
        align_heads(model, ChatTemplate(tokenizer), DATA, heads=[0], strength=0.05, facts=20)
