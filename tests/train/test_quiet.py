import random

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.messages import Message
from deltamem_agents.train import Values
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.features import Features, message_tokens
from deltamem_agents.train.fits import regression
from deltamem_agents.train.quiet import quieten_gates, talk_messages, told_messages

DATA = TrainingData(Values(["harbor", "velvet", "saddle", "pigeon", "copper"]))


def gates(model: DeltaMemModel, tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> Tensor:
    """All gates before the sigmoid, the mean over layers and tokens."""
    template = ChatTemplate(tokenizer)
    features = torch.cat(Features(model).of([message_tokens(template, message) for message in messages]))
    layers = model.adapter.layers.values()
    found = [features[:, n] @ x.in_proj[x.block["beta"].start :].T + x.gate_bias for n, x in enumerate(layers)]
    return torch.stack(found).mean((0, 1))


@pytest.mark.parametrize("coupled", [False, True])
@torch.no_grad()
def test_gates_close_on_talk_and_stay_as_they_are_on_what_is_told(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, coupled: bool
) -> None:
    config = DeltaMemConfig(rank=4, num_state_heads=4, couple_lambda=coupled)
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(config, backbone))
    rng = random.Random("messages that nothing was fitted to")
    told, talk = told_messages(DATA, 60, rng), talk_messages(DATA, 60, rng)
    before = [gates(model, tokenizer, messages) for messages in (told, talk)]
    others = [layer.in_proj[: layer.block["beta"].start].clone() for layer in model.adapter.layers.values()]
    quieten_gates(model, ChatTemplate(tokenizer), DATA, amount=6.0, messages=150)
    moved = [gates(model, tokenizer, m) - b for m, b in zip((told, talk), before, strict=True)]
    assert moved[1][: config.gates].max() < -0.25
    if not coupled:
        assert moved[1][config.gates :].min() > 0.25, "talk takes nothing away"
    assert moved[0].abs().max() < 0.3 * moved[1].abs().min(), "what is told is written as before"
    for layer, weights in zip(model.adapter.layers.values(), others, strict=True):
        assert torch.equal(layer.in_proj[: layer.block["beta"].start], weights)


def test_regression_finds_what_rows_mean() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=g) + 2.0
    weights = regression(x, x[:, 1] - 3 * x[:, 4] + 7.0, ridge=1e-4)
    assert torch.allclose(weights, torch.tensor([0.0, 1, 0, 0, -3, 0]), atol=0.02)


def test_talk_tells_nothing_and_what_is_told_does() -> None:
    rng = random.Random(0)
    told, talk = told_messages(DATA, 40, rng), talk_messages(DATA, 80, rng)
    assert (len(told), len(talk)) == (40, 80)
    assert {m.role for m in told} == {"user"}
    assert {m.role for m in talk} == {"user", "tool"}
    assert not {m.content for m in told} & {m.content for m in talk}
