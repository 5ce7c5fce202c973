"""Gates that keep still while nothing is told, fitted to the frozen backbone without training.

Each written token takes a share of what the memory holds. A gate of 0.05 on talk sounds small, and leaves nothing after
some hundred tokens. Training closes gates slowly, because one message of talk costs little; but hidden states tell
statements about somebody from talk, so a linear map can do it at once.
"""

import random

import torch
from torch import Tensor

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.layer import DeltaMemLayer
from deltamem_agents.messages import Message
from deltamem_agents.train.agents import tool_turn
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.episodes import EpisodeMix
from deltamem_agents.train.features import AT_ONCE, Features, layer_groups, message_tokens
from deltamem_agents.train.fits import regression

MESSAGES = 1200
"""Of each kind, told and talk, that the map is fitted to."""


@torch.no_grad()
def quieten_gates(
    model: DeltaMemModel,
    template: ChatTemplate,
    data: TrainingData,
    *,
    amount: float,
    messages: int = MESSAGES,
    seed: int = 0,
) -> None:
    """Lowers write gates and raises retention on talk, in place; on what is told they keep their mean.

    Args:
        model: its backbone is asked, its adapter is changed.
        template: renders messages.
        data: makes what is told, and talk: sentences, questions, requests to tools and their results.
        amount: by how much at most, before the sigmoid. Where a layer tells the two apart less well it is less.
        messages: how many of each kind.
        seed: draws them.
    """
    rng = random.Random(f"quiet {seed}")
    told, talk = told_messages(data, messages, rng), talk_messages(data, messages, rng)
    rows = [message_tokens(template, message) for message in (*told, *talk)]
    tells = torch.cat([torch.full((len(row),), n < len(told)) for n, row in enumerate(rows)]).to(model.device)
    layers = list(model.adapter.layers.values())
    for group in layer_groups(model, len(tells)):
        features = torch.cat(Features(model, layers=group, budget=AT_ONCE).of(rows))  # [M, layers of the group, H]
        for number in group:
            _quieten_layer(layers[number], features[:, number - group.start].float(), tells, amount)


def _quieten_layer(layer: DeltaMemLayer, x: Tensor, tells: Tensor, amount: float) -> None:
    weights = regression(x, amount * tells.float())
    shift = (x[tells] @ weights).mean()
    config, start = layer.config, layer.block["beta"].start
    signs = torch.ones(len(layer.gate_bias), device=x.device)
    if not config.couple_lambda:
        signs[config.gates :] = -1
    layer.in_proj[start:] += torch.outer(signs, weights).to(layer.in_proj.dtype)
    layer.gate_bias.sub_((signs * shift).to(layer.gate_bias.dtype))


def told_messages(data: TrainingData, count: int, rng: random.Random) -> list[Message]:
    """Messages that tell, replace or deny a fact, in the phrasings of training."""
    mix = EpisodeMix(kinds={"told": 6, "updated": 3, "negated": 1}, open_share=0.7, made_up=0.3, people=0.15, dates=0.1)
    found: list[Message] = []
    while len(found) < count:
        found += data.generate(mix, rng, split="train").earlier
    return found[:count]


def talk_messages(data: TrainingData, count: int, rng: random.Random) -> list[Message]:
    """Messages that tell nothing about anybody: sentences, questions for facts, requests to tools and their results."""
    mix = EpisodeMix(other_talk=4, tools=0.5, people=0.1, filler=(0, 40))
    found: list[Message] = []
    while len(found) < count:
        episode = data.generate(mix, rng, split="train")
        found += [m for n, m in enumerate(episode.earlier) if n in episode.talk]
        found += [m for m in tool_turn(rng, "train") if m.role == "tool"]  # one an episode: an agent hears many
        found.append(Message(role="user", content=episode.question))
    return found[:count]
