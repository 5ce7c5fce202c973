"""Initial weights that bind values to what they are values of, fitted to the frozen backbone without training.

Random keys are a trap: hidden states share a large common part, so all keys come out alike, and a memory of two facts
answers with either. As long as keys are alike queries have no gradient, and the other way round. So state heads begin
with keys of value tokens and queries of the positions that ask for them which agree where the fact is the same
(canonical correlation analysis), with values that tell tokens apart, corrections that lead back to these tokens, write
gates that open at values, and read gates that open where a value is about to be said.
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
from deltamem_agents.train.features import AT_ONCE, Features, TokenRow, layer_groups, message_tokens
from deltamem_agents.train.fits import constant, separator, shared_directions, token_code
from deltamem_agents.train.runlog import Progress

FACTS = 1000
KEY_DIRECTIONS, CODE_DIRECTIONS = 2, 12
"""Shared directions of keys and numbers of a token's code that the heads mix, in multiples of the rank."""
KEY_SCALE = 0.8
"""Deviation of keys and queries before they are squashed."""
CLOSED, OPEN, KEPT = -4.5, 2.5, 6.0
"""Write gates of other tokens and of values, and retention, before the sigmoid."""
MATCH = 0.56
"""About what a matching read gives back of a value: gate times agreement of key and query."""
READ_CLOSED, READ_OPEN = -3.5, 1.5
"""Read gates of other tokens and of positions that are about to say a value, before the sigmoid."""
UNKNOWN = 3.0
"""By how much less a read gate opens, before the sigmoid, where nothing was written under the key that is asked for."""


@dataclass(frozen=True, slots=True)
class PairRows:
    """Token rows of statements, and of questions with their answers, and where their values stand."""

    statements: tuple[TokenRow, ...]
    answers: tuple[TokenRow, ...]
    told: tuple[range, ...]
    """The value's tokens in each statement."""
    asked: tuple[range, ...]
    """The positions in each answer that predict them."""

    @property
    def tokens(self) -> int:
        """How many there are in all."""
        return sum(map(len, (*self.statements, *self.answers)))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Tokens of values as they are told, and the positions that have to predict them, in some of the layers."""

    told: Tensor
    """[N, layers, H], in half precision."""
    before: Tensor
    """[N, layers, H]: the tokens before them."""
    asked: Tensor
    """[N, layers, H]."""
    tokens: Tensor
    """long [N]."""
    others: Tensor
    """[M, layers, H]: all tokens of what is told."""
    is_value: Tensor
    """bool [M]."""
    replies: Tensor
    """[L, layers, H]: all tokens of questions with their answers."""
    is_asked: Tensor
    """bool [L]."""


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
    progress: Progress | None = None,
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
        progress: told how many texts are read, and then how many layers are fitted.

    Raises:
        TrainingError: the tokenizer writes too few values in questions and statements alike.
    """
    rows = value_rows(template, data, facts, random.Random(f"align {seed}"))
    lengths = _residual_lengths(model, template)
    embedding = model.backbone.get_output_embeddings().weight.float()  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(seed)
    layers = list(model.adapter.layers.values())
    for group in layer_groups(model, rows.tokens):
        pairs = value_pairs(model, rows, group, progress)
        targets = torch.nn.functional.normalize(embedding[pairs.tokens], dim=-1)
        for number in group:
            late = strength if number >= len(layers) // 2 - 1 else strength / 10
            length = late * lengths[number]
            _align_layer(layers[number], pairs, number - group.start, targets, list(heads), length, generator)
            if progress is not None:
                progress(number + 1, len(layers))


def _align_layer(
    layer: DeltaMemLayer,
    pairs: Pairs,
    number: int,
    targets: Tensor,
    heads: list[int],
    length: float,
    generator: torch.Generator,
) -> None:
    config, block, weight = layer.config, layer.block, layer.in_proj
    rank, device = config.rank, weight.device
    told, asked = pairs.told[:, number].float(), pairs.asked[:, number].float()
    seen = torch.cat([told, pairs.before[:, number].float()], -1) if config.key_shift else told
    shared = shared_directions(seen, asked, count=KEY_DIRECTIONS * rank)
    code = token_code(told, targets, count=CODE_DIRECTIONS * rank)
    opening, bias = separator(pairs.others[:, number].float(), pairs.is_value, low=CLOSED, high=OPEN)
    weighed = shared.correlation[:, None]
    mark = 1 if config.read_gate == "match" else 0  # with it, a head's first value dimension is 1 for all that is told
    for head in heads:
        rows = torch.arange(head * rank, (head + 1) * rank, device=device)
        coded = rows[mark:]
        mix = _orthonormal(rank, len(shared.correlation), generator).to(device) * KEY_DIRECTIONS**0.5 * KEY_SCALE
        part = _orthonormal(len(coded), len(code.encode), generator).to(device)
        values, back = part @ code.encode, part @ code.decode
        reached = (told @ values.T @ back).norm(dim=-1).mean() * MATCH * len(heads) ** 0.5
        weight[block["q"].start + rows] = (mix @ (weighed * shared.second)).to(weight.dtype)
        keys = (mix @ (weighed * shared.first)).to(weight.dtype)
        weight[block["k"].start + rows] = keys[:, : layer.shape.hidden]
        if config.key_shift:
            weight[block["shift"].start + rows] = keys[:, layer.shape.hidden :]
        weight[block["v"].start + coded] = values.to(weight.dtype)
        gates = rows if config.rankwise_gates else torch.tensor([head], device=device)
        weight[block["beta"].start + gates] = opening.to(weight.dtype)
        layer.gate_bias[gates] = bias.to(layer.gate_bias.dtype)
        if not config.couple_lambda:
            weight[block["lambda"].start + gates] = 0.0
            layer.gate_bias[config.gates + gates] = KEPT
        for name, delta in layer.delta.items():
            if name == "o":
                delta[:, coded] = (back * (length / (reached * config.scale))).T.to(delta.dtype)
                delta[:, rows[:mark]] = 0.0
            else:
                delta[:, rows] = delta[:, rows] / 10
        if mark:
            weight[block["v"].start + rows[0]] = constant(told, 1.0).to(weight.dtype)
    if config.read_gate != "off":
        _align_read_gate(layer, pairs, number, heads, seen)


def _align_read_gate(layer: DeltaMemLayer, pairs: Pairs, number: int, heads: list[int], seen: Tensor) -> None:
    """Opens read gates where a value is about to be said and, if they see what is read, was told."""
    config, block = layer.config, layer.block
    others = torch.cat([pairs.replies[:, number], pairs.others[:, number]]).float()
    on = torch.cat([pairs.is_asked, torch.zeros_like(pairs.is_value)])
    opening, bias = separator(others, on, low=READ_CLOSED, high=READ_OPEN)
    layer.in_proj[[block["gate"].start + head for head in heads]] = opening.to(layer.in_proj.dtype)
    layer.read_gate_bias[heads] = bias.to(layer.read_gate_bias.dtype)
    if config.read_gate != "match":
        return
    keys = torch.cat([layer.in_proj[block[name]] for name in ("k", "shift")], -1)[:, : seen.shape[1]]
    views = (seen, keys), (pairs.asked[:, number].float(), layer.in_proj[block["q"]])
    squashed = ((x @ w.float().T).tanh().view(len(x), -1, config.rank) for x, w in views)
    k, q = (torch.nn.functional.normalize(x, dim=-1)[:, heads] for x in squashed)  # [N, heads, r]
    same, other = ((k.roll(shift, 0) * q).sum(-1).mean() for shift in (0, len(k) // 2))
    strength = UNKNOWN / (same - other).clamp_min(0.1)
    layer.read_gate_match[heads] = 0.0
    for head in heads:
        layer.read_gate_match[heads, head * config.rank] = (strength / len(heads)).to(layer.read_gate_match.dtype)
    layer.read_gate_bias[heads] -= (strength * same).to(layer.read_gate_bias.dtype)


def value_rows(template: ChatTemplate, data: TrainingData, facts: int, rng: random.Random) -> PairRows:
    """Facts as they are told, and as they are asked for, in the phrasings of training.

    Args:
        template: renders facts and questions.
        data: makes them.
        facts: how many; those whose value the tokenizer writes differently in statement and answer are left out.
        rng: draws them.

    Raises:
        TrainingError: hardly any are left.
    """
    mix = EpisodeMix(open_share=0.85, made_up=0.35, capitals=0.5, people=0.1, other_talk=1)
    found: list[tuple[TokenRow, TokenRow, range, range]] = []
    for _ in range(facts):
        episode = data.generate(mix, rng, split="train")
        fact = next(m for n, m in enumerate(episode.earlier) if n not in episode.talk)
        value = tuple(template.tokenizer.encode(f" {episode.value}", add_special_tokens=False))
        said = message_tokens(template, fact)
        question = (*message_tokens(template, episode.prompt[-1]), *template.generation_prompt(episode.prompt))
        reply = (*question, *template.tokenizer.encode(episode.answer, add_special_tokens=False))
        told, asked = _find(said, value), _find(reply, value, after=len(question))
        if told is not None and asked is not None:  # a position predicts the next token
            found.append((said, reply, told, range(asked.start - 1, asked.stop - 1)))
    if len(found) < facts // 4:
        raise TrainingError(
            f"only {len(found)} of {facts} facts have their value in the same tokens in statement and answer: this "
            "tokenizer cannot be aligned; set align to 0 in the recipe"
        )
    return PairRows(*zip(*found, strict=True))


def value_pairs(
    model: DeltaMemModel, rows: PairRows, layers: range, progress: Progress | None = None
) -> Pairs:
    """Features of values as they are told, and as they are asked for.

    Args:
        model: its backbone computes them.
        rows: the facts.
        layers: which of the adapter's layers.
        progress: told how many texts of a kind are read.
    """
    features, device = Features(model, layers=layers, budget=AT_ONCE, progress=progress), model.device
    said, replies = features.of(rows.statements), features.of(rows.answers)
    is_value = [n in told for row, told in zip(rows.statements, rows.told, strict=True) for n in range(len(row))]
    is_asked = [n in asked for row, asked in zip(rows.answers, rows.asked, strict=True) for n in range(len(row))]
    return Pairs(
        told=torch.cat([f[list(told)] for f, told in zip(said, rows.told, strict=True)]),
        before=torch.cat([f[[n - 1 for n in told]] for f, told in zip(said, rows.told, strict=True)]),
        asked=torch.cat([f[list(asked)] for f, asked in zip(replies, rows.asked, strict=True)]),
        tokens=torch.tensor(
            [row[n] for row, told in zip(rows.statements, rows.told, strict=True) for n in told], device=device
        ),
        others=torch.cat(said),
        is_value=torch.tensor(is_value, device=device),
        replies=torch.cat(replies),
        is_asked=torch.tensor(is_asked, device=device),
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
