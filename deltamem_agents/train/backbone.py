"""The frozen backbone of a recipe: where it is, in how many bits, and what it keeps for the backward pass."""

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from deltamem_agents.adapter.named import located
from deltamem_agents.backbone.bundled import bundled_path
from deltamem_agents.backbone.load import BUNDLED, load_backbone, load_tokenizer
from deltamem_agents.errors import BackboneError, ConfigError
from deltamem_agents.train.machine import training_dtype
from deltamem_agents.train.recipe import Recipe


def recipe_backbone(recipe: Recipe, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a recipe's model, and its tokenizer.

    Args:
        recipe: says which model, and how.
        device: where to put it, unless the recipe's `model_kwargs` have a `device_map`.

    Raises:
        BackboneError: there is no such model, or it cannot be loaded in this way.
        ConfigError: it was put on several devices.
    """
    dtype = training_dtype(recipe.dtype, device)
    options: dict[str, object] = dict(recipe.model_kwargs)
    quantised = options.get("quantization_config")
    if isinstance(quantised, dict):
        options.setdefault("device_map", {"": str(device)})
        if quantised.get("load_in_4bit"):
            options["quantization_config"] = {"bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."), **quantised}
    there = "device_map" in options
    backbone, tokenizer = load_backbone(
        recipe.model, device=None if there else device, dtype=dtype, model_kwargs=options
    )
    places = sorted({str(place) for place in (getattr(backbone, "hf_device_map", None) or {}).values()})
    if len(places) > 1:
        raise ConfigError(
            f"device_map put {recipe.model} on {', '.join(places)}: training needs all of it on one device; name that, "
            'as in device_map: {"": 0}, and if it does not fit there, load it in 4 bits and set gradient_checkpointing'
        )
    return backbone, tokenizer


def recipe_shapes(recipe: Recipe) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Config and tokenizer of a recipe's model, without its weights.

    Raises:
        BackboneError: there is no such model, it has no tokenizer, or they cannot be read.
    """
    path = bundled_path() if recipe.model == BUNDLED else located(recipe.model)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"the config of {recipe.model} cannot be read ({error}): check the name, the folder, the network"
        ) from error
    return config, load_tokenizer(path, recipe.model_kwargs)


def placed(backbone: PreTrainedModel, device: torch.device, recipe: Recipe) -> PreTrainedModel:
    """The backbone on the device, or where it is already if the recipe says where, or it is quantised."""
    if "device_map" in recipe.model_kwargs or getattr(backbone, "is_quantized", False):
        return backbone
    moved: PreTrainedModel = backbone.to(device)  # type: ignore[arg-type]
    return moved


def replay_layers(backbone: PreTrainedModel) -> None:
    """Has forwards with gradients keep only each decoder layer's input, and backward compute the layer once more.

    transformers' own switch needs the model in training mode, which turns on its dropout.

    Raises:
        ConfigError: this model's layers can't be replayed.
    """
    layers = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"{type(backbone).__name__} has no layers that can be computed once more: set gradient_checkpointing: false"
        )
    for layer in layers:
        if not isinstance(layer.forward, _Replayed):
            layer.forward = _Replayed(layer.forward)


class _Replayed:
    """A layer's forward whose inner results are not kept."""

    def __init__(self, forward: Callable[..., object]) -> None:
        self.forward = forward

    def __call__(self, *args: object, **kwargs: object) -> object:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        forward = partial(self.forward, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)
