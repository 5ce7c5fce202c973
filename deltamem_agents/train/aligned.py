"""Initial weights that bind values to what they are values of, fitted to the frozen backbone without training.

Random keys are a trap: hidden states share a large common part, so all keys come out alike, and a memory of two facts
answers with either. As long as keys are alike queries have no gradient, and the other way round. So state heads begin
with keys of value tokens and queries of the positions that ask for them which agree where the fact is the same
(canonical correlation analysis), with values that tell tokens apart, corrections that lead back to these tokens, and
write gates that open at values.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.adapter.attach import find_attention
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.errors import TrainingError
from deltamem_agents.layer import DeltaMemLayer
from deltamem_agents.messages import Message
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.episodes import EpisodeMix
from deltamem_agents.train.features import Features, TokenRow, message_tokens
from deltamem_agents.train.fits import separator, shared_directions, token_code

FACTS = 1000
KEY_DIRECTIONS, CODE_DIRECTIONS = 2, 12
"""Shared directions of keys and numbers of a token's code that the heads mix, in multiples of the rank."""
KEY_SCALE = 0.8
"""Deviation of keys and queries before they are squashed."""
CLOSED, OPEN, KEPT = -4.5, 2.5, 6.0
"""Write gates of other tokens and of values, and retention, before the sigmoid."""
MATCH = 0.56
"""About what a matching read gives back of a value: gate times agreement of key and query."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Tokens of values as they are told, and the positions that have to predict them."""

    told: Tensor
    """[N, layers, H], in half precision."""
    asked: Tensor
    """[N, layers, H]."""
    tokens: Tensor
    """long [N]."""
    others: Tensor
    """[M, layers, H]: all tokens of what is told."""
    is_value: Tensor
    """bool [M]."""


@torch.no_grad()
def align_heads(
    model: DeltaMemModel,
    template: ChatTemplate,
    data: TrainingData,
    *,
    heads: Sequence[int],
    strength: float,
    facts: int = FACTS,
    seed: int = 0,
) -> None:
    """Gives state heads their aligned weights, in place; the others keep theirs.

    Args:
        model: its backbone is asked, its adapter is changed.
        template: renders facts and questions.
        data: makes them.
        heads: which heads.
        strength: length of a matching read's correction in the second half of the layers, in units of the residual
            stream there; in the first half, where keys agree less, it is a tenth of it.
        facts: how many facts the weights are fitted to.
        seed: draws facts, and what each head sees of keys and codes.

    Raises:
        TrainingError: the tokenizer writes too few values in questions and statements alike.
    """
    pairs = value_pairs(model, template, data, facts, random.Random(f"align {seed}"))
    lengths = _residual_lengths(model, template)
    embedding = model.backbone.get_output_embeddings().weight.float()  # type: ignore[no-untyped-call]
    targets = torch.nn.functional.normalize(embedding[pairs.tokens], dim=-1)
    generator = torch.Generator().manual_seed(seed)
    layers = list(model.adapter.layers.values())
    for number, layer in enumerate(layers):
        late = strength if number >= len(layers) // 2 - 1 else strength / 10
        _align_layer(layer, pairs, number, targets, list(heads), late * lengths[number], generator)


def _align_layer(
    layer: DeltaMemLayer,
    pairs: Pairs,
    number: int,
    targets: Tensor,
    heads: list[int],
    length: float,
    generator: torch.Generator,
) -> None:
    config, device = layer.config, layer.in_proj.device
    rank, width = config.rank, config.width
    told, asked = pairs.told[:, number].float(), pairs.asked[:, number].float()
    shared = shared_directions(told, asked, count=KEY_DIRECTIONS * rank)
    code = token_code(told, targets, count=CODE_DIRECTIONS * rank)
    opening, bias = separator(pairs.others[:, number].float(), pairs.is_value, low=CLOSED, high=OPEN)
    weighed = shared.correlation[:, None]
    for head in heads:
        rows = torch.arange(head * rank, (head + 1) * rank, device=device)
        mix = _orthonormal(rank, len(shared.correlation), generator).to(device) * KEY_DIRECTIONS**0.5 * KEY_SCALE
        part = _orthonormal(rank, len(code.encode), generator).to(device)
        values, back = part @ code.encode, part @ code.decode
        reached = (told @ values.T @ back).norm(dim=-1).mean() * MATCH * len(heads) ** 0.5
        layer.in_proj[rows] = (mix @ (weighed * shared.second)).to(layer.in_proj.dtype)
        layer.in_proj[width + rows] = (mix @ (weighed * shared.first)).to(layer.in_proj.dtype)
        layer.in_proj[2 * width + rows] = values.to(layer.in_proj.dtype)
        gates = rows if config.rankwise_gates else torch.tensor([head], device=device)
        layer.in_proj[3 * width + gates] = opening.to(layer.in_proj.dtype)
        layer.gate_bias[gates] = bias.to(layer.gate_bias.dtype)
        if not config.couple_lambda:
            layer.in_proj[3 * width + config.gates + gates] = 0.0
            layer.gate_bias[config.gates + gates] = KEPT
        for name, delta in layer.delta.items():
            if name == "o":
                delta[:, rows] = (back * (length / (reached * config.scale))).T.to(delta.dtype)
            else:
                delta[:, rows] = delta[:, rows] / 10


def value_pairs(
    model: DeltaMemModel, template: ChatTemplate, data: TrainingData, facts: int, rng: random.Random
) -> Pairs:
    """Features of values as they are told, and as they are asked for, from facts in the phrasings of training.

    Args:
        model: its backbone computes them.
        template: renders facts and questions.
        data: makes them.
        facts: how many; those whose value the tokenizer writes differently in statement and answer are left out.
        rng: draws them.

    Raises:
        TrainingError: hardly any are left.
    """
    mix = EpisodeMix(open_share=0.85, made_up=0.35, capitals=0.5, people=0.1, other_talk=1)
    statements: list[TokenRow] = []
    answers: list[TokenRow] = []
    places: list[tuple[range, range]] = []
    for _ in range(facts):
        episode = data.generate(mix, rng, split="train")
        fact = next(m for n, m in enumerate(episode.earlier) if n not in episode.talk)
        value = tuple(template.tokenizer.encode(f" {episode.value}", add_special_tokens=False))
        said = message_tokens(template, fact)
        question = (*message_tokens(template, episode.prompt[-1]), *template.generation_prompt(episode.prompt))
        reply = (*question, *template.tokenizer.encode(episode.answer, add_special_tokens=False))
        told, asked = _find(said, value), _find(reply, value, after=len(question))
        if told is not None and asked is not None:
            statements.append(said)
            answers.append(reply)
            places.append((told, range(asked.start - 1, asked.stop - 1)))  # a position predicts the next token
    if len(places) < facts // 4:
        raise TrainingError(
            f"only {len(places)} of {facts} facts have their value in the same tokens in statement and answer: this "
            "tokenizer cannot be aligned; set align to 0 in the recipe"
        )
    features = Features(model)
    said_features = features.of(statements)
    told_features = [f[list(told)] for f, (told, _) in zip(said_features, places, strict=True)]
    asked_features = features.of(answers, keep=[torch.tensor(list(asked)) for _, asked in places])
    is_value = [n in told for row, (told, _) in zip(statements, places, strict=True) for n in range(len(row))]
    tokens = [row[n] for row, (told, _) in zip(statements, places, strict=True) for n in told]
    device = model.device
    return Pairs(
        told=torch.cat(told_features),
        asked=torch.cat(asked_features),
        tokens=torch.tensor(tokens, device=device),
        others=torch.cat(said_features),
        is_value=torch.tensor(is_value, device=device),
    )


def _find(row: TokenRow, part: TokenRow, *, after: int = 0) -> range | None:
    """Where `part` stands in `row`, at or after a position."""
    starts = range(after, len(row) - len(part) + 1)
    start = next((n for n in starts if row[n : n + len(part)] == part), None)
    return None if start is None else range(start, start + len(part))


def _residual_lengths(model: DeltaMemModel, template: ChatTemplate) -> list[float]:
    """Mean length of the residual stream at the layers with a memory, behind the first tokens, which are special."""
    sentence = Message(role="user", content="My sister lives in a small town by the sea.")
    ids = torch.tensor([message_tokens(template, sentence)], device=model.device)
    out = model.backbone(input_ids=ids, output_hidden_states=True, use_cache=False)
    sites = find_attention(model.backbone)
    numbers = [sites[path].layer for path in model.adapter.paths]
    return [out.hidden_states[n][0, ids.shape[1] // 2 :].float().norm(dim=-1).mean().item() for n in numbers]


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    q: Tensor = torch.linalg.qr(torch.randn(columns, rows, generator=generator)).Q
    return q.T
