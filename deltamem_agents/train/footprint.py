"""How much memory a run takes on its device: computed from a recipe, the model's config and its tokenizer.

Weights are counted from shapes. What the backward pass keeps is counted on a layer of the model's widths with empty
weights, for each token; all layers keep as much. Nothing of the model itself is loaded.
"""

import copy
import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel
from deltamem_agents.adapter.attach import find_attention
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.train.aligned import FACTS
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.episode import Episode
from deltamem_agents.train.features import AT_ONCE, message_tokens
from deltamem_agents.train.recipe import Recipe

UNRELATED_TOKENS = 160
"""About how long a row is that must stay as it is."""
SAMPLE = (2, 64)
"""Rows and tokens on which one layer is counted, the first of them padding: what attention keeps grows with length."""
LEARNT = 16
"""Bytes a weight that learns: itself, its gradient and AdamW's two averages, in float32."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """The largest batch of a recipe, in tokens, padding included."""

    read: int
    """Of questions with their answers, and of rows that must stay as they are."""
    written: int
    """Of what memories are made of."""
    answers: int
    """Of answers, at which predictions are made."""
    pairs: int
    """Of facts and their questions, which aligned heads are fitted to; 0 where none are."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes, in parts. Computed, not measured: the device's own few hundred MB come on top."""

    weights: int
    """The frozen model."""
    learning: int
    """The adapter, its gradients and the optimiser's averages."""
    kept: int
    """What forwards keep for the backward pass."""
    replayed: int
    """The same with `gradient_checkpointing`."""
    predictions: int
    """Logits at answers, and their gradients."""
    aligning: int
    """Hidden states that aligned heads are fitted to, before the first step."""

    def total(self, *, checkpointing: bool) -> int:
        """The most that there is at once."""
        step = self.learning + self.predictions + (self.replayed if checkpointing else self.kept)
        return self.weights + max(step, self.aligning)

    def rows(self, *, checkpointing: bool) -> dict[str, int]:
        """The parts and what they come to, in words, as a recipe has it and the other way."""
        ways = {True: "with gradient_checkpointing", False: "without gradient_checkpointing"}
        here, there = ways[checkpointing], ways[not checkpointing]
        return {
            "the frozen model": self.weights,
            "adapter, gradients, AdamW": self.learning,
            "predictions of answers": self.predictions,
            f"kept for backward, {here}": self.replayed if checkpointing else self.kept,
            "aligning heads, before the first step": self.aligning,
            "at most at once": self.total(checkpointing=checkpointing),
            f"the same {there}": self.total(checkpointing=not checkpointing),
        }


def footprint(
    recipe: Recipe, config: PretrainedConfig, dtype: torch.dtype, template: ChatTemplate, data: TrainingData
) -> Footprint:
    """What a recipe takes with a model.

    Args:
        recipe: the recipe.
        config: of the model.
        dtype: what it computes in.
        template: renders episodes.
        data: draws them.
    """
    with torch.device("meta"):
        whole: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    sites, text = find_attention(whole), config.get_text_config()
    learning = sum(p.numel() for p in DeltaMemAdapter.initialize(recipe.adapter, whole).parameters()) * LEARNT
    layers, vocabulary, hidden = len(sites), text.vocab_size, text.hidden_size * dtype.itemsize
    lengths = longest(recipe, template, data)
    reading, writing = _kept_by_one_layer(config, dtype, recipe.adapter)
    written = lengths.written * layers * (hidden + writing)
    one = 2 * lengths.pairs * text.hidden_size * 2  # a layer's features in half precision, twice while put together
    at_once = lengths.answers * (2 if recipe.losses.margin or recipe.losses.distillation else 1)
    return Footprint(
        weights=_weights(whole, recipe, config),
        learning=learning,
        kept=int(lengths.read * layers * reading + written),
        replayed=int(lengths.read * (layers * hidden + reading) + written),
        predictions=at_once * vocabulary * (dtype.itemsize + 3 * 4),
        aligning=max(one, min(one * layers, AT_ONCE)) if recipe.align else 0,
    )


def longest(recipe: Recipe, template: ChatTemplate, data: TrainingData) -> Lengths:
    """The largest batch among a few drawn from each stage."""
    rng, found = random.Random("footprint"), []
    for stage in recipe.stages:
        facts = max(stage.facts)
        mix = stage.model_copy(update={"facts": (facts,), "replies": stage.together > 0})
        rows = max(2, recipe.rows // min(facts, stage.questions))
        episodes = [data.generate(mix, rng, split="train") for _ in range(2 * rows)]
        if stage.data_share:
            episodes += [e for _, each in data.sources for e in rng.sample(each, min(len(each), rows))]
        answers = [_length(template, e.answer) * (1 + len(e.exchanges)) for e in episodes]
        prompts = [sum(len(s.ids) for s in template.render(e.prompt)) for e in episodes]
        plain = recipe.unrelated if stage.unrelated_every and recipe.losses.plain else 0
        read = rows * max(p + a for p, a in zip(prompts, answers, strict=True)) + plain * UNRELATED_TOKENS
        written = rows * max(_written(template, e, recipe.adapter) for e in episodes)
        found.append((read, written, rows * max(answers) + plain * recipe.losses.plain_positions))
    first = [data.generate(recipe.stages[0], rng, split="train") for _ in range(32)]
    said = sum(_length(template, e.earlier[0].content) + _length(template, e.question + e.answer) + 10 for e in first)
    read, written, answers_in_all = (max(each) for each in zip(*found, strict=True))
    return Lengths(read, written, answers_in_all, FACTS * said // len(first))


def _length(template: ChatTemplate, text: str) -> int:
    return len(template.tokenizer.encode(text, add_special_tokens=False)) + 2


def _written(template: ChatTemplate, episode: Episode, adapter: DeltaMemConfig) -> int:
    return sum(len(message_tokens(template, m)) for m in episode.earlier if m.role in adapter.absorb_roles)


def _weights(whole: PreTrainedModel, recipe: Recipe, config: PretrainedConfig) -> int:
    """Bytes of the model; linear layers but the output layer take as many bits as they are quantised to."""
    quantised = recipe.model_kwargs.get("quantization_config") or getattr(config, "quantization_config", None)
    options = quantised if isinstance(quantised, dict) else {}
    bits = 4 if options.get("load_in_4bit") else 8 if options.get("load_in_8bit") else options.get("bits")
    head = whole.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = {
        id(m.weight) for m in whole.modules() if isinstance(m, nn.Linear) and m is not head and isinstance(bits, int)
    }
    scales = 0.5 if bits == 4 else 0.0  # bits a weight: one float32 for 64 of them
    each = ((p.numel() * ((bits + scales) / 8 if id(p) in linear else p.itemsize)) for p in whole.parameters())  # type: ignore[operator]
    return int(sum(each))


def _kept_by_one_layer(config: PretrainedConfig, dtype: torch.dtype, adapter: DeltaMemConfig) -> tuple[float, float]:
    """Bytes a token that one layer keeps for the backward pass, when it answers and when it is written."""
    rows, tokens = SAMPLE
    model = _two_layers(config, dtype, adapter)
    block = next(m for m in model.backbone.modules() if isinstance(m, nn.ModuleList))[1]
    counted = _Counted(model)
    handles = [block.register_forward_pre_hook(counted.begin), block.register_forward_hook(counted.end)]
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    with counted.hooks():
        model(ids, mask, write=True, use_cache=False, logits_to_keep=1)
    for handle in handles:
        handle.remove()
    reading = counted.bytes / ids.numel()
    layer = next(iter(model.adapter.layers.values()))
    counted = _Counted(model)
    counted.on = True
    with counted.hooks():
        layer(torch.zeros(rows, tokens, layer.shape.hidden), model.zero_state(rows).tensor[:, 0], write=True)
    return reading, counted.bytes / ids.numel()


def _two_layers(config: PretrainedConfig, dtype: torch.dtype, adapter: DeltaMemConfig) -> DeltaMemModel:
    """Layers of the model's widths, with empty weights and hardly a vocabulary; gradients reach the second's input."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 2, 64, None
    if getattr(text, "layer_types", None):
        text.layer_types = [next(kind for kind in text.layer_types if "attention" in kind)] * 2
    with torch.device("meta"):
        layers: PreTrainedModel = AutoModelForCausalLM.from_config(small, dtype=dtype)  # type: ignore[no-untyped-call]
    layers = layers.to_empty(device="cpu").eval()  # type: ignore[no-untyped-call]
    for tensor in (*layers.parameters(), *layers.buffers()):
        nn.init.zeros_(tensor)
    both = adapter.model_copy(update={"target_layers": None})
    return DeltaMemModel(layers, DeltaMemAdapter.initialize(both, layers))


class _Counted:
    """Counts what is saved for the backward pass while it is on, each block of memory once, weights left out."""

    def __init__(self, model: nn.Module) -> None:
        self.on = False
        self.bytes = 0
        self._seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._held: list[Tensor] = []

    def begin(self, *_: object) -> None:
        self.on = True

    def end(self, *_: object) -> None:
        self.on = False

    def hooks(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self._save, lambda tensor: tensor)

    def _save(self, tensor: Tensor) -> Tensor:
        block = tensor.untyped_storage()
        if self.on and block.data_ptr() not in self._seen:
            self._seen.add(block.data_ptr())
            self._held.append(tensor)  # so that no other block gets its place
            self.bytes += block.nbytes()
        return tensor
