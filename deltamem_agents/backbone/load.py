"""Loading backbones: the bundled one, a local folder, or a hub id."""

import hashlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.backbone.bundled import bundled_path
from deltamem_agents.errors import BackboneError, UnsupportedArchitectureError

BUNDLED = "bundled"
"""The name under which the bundled backbone goes wherever a model is asked for."""


def load_backbone(
    model: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    model_kwargs: dict[str, object] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal LM and its tokenizer, ready for inference.

    Args:
        model: "bundled", a folder, or a hub id.
        device: where to put it; None leaves that to transformers.
        dtype: of the weights; "auto" takes the checkpoint's own.
        model_kwargs: anything else `AutoModelForCausalLM.from_pretrained` takes, such as `device_map` or
            `quantization_config`.

    Raises:
        BackboneError: there is no such model, or it cannot be loaded.
        UnsupportedArchitectureError: it is no causal LM.
    """
    path = bundled_path() if model == BUNDLED else model
    if isinstance(path, Path) and not path.is_dir():
        raise BackboneError(f"no model at {path}: expected a folder with a config.json, or a hub id like owner/name")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        backbone = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **(model_kwargs or {}))
    except ValueError as error:
        raise UnsupportedArchitectureError(f"{model} is not a causal LM that transformers can load: {error}") from error
    except (OSError, RuntimeError, TypeError) as error:
        raise BackboneError(
            f"{model} could not be loaded ({type(error).__name__}: {error}): check the name, the folder's files, or the network"
        ) from error
    if device is not None:
        backbone = backbone.to(device)
    return backbone.eval(), tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identifies a tokenizer by its vocabulary."""
    vocabulary = "\n".join(f"{i} {token}" for token, i in sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:8]


def context_length(backbone: PreTrainedModel) -> int:
    """How many tokens the backbone can attend to."""
    return int(backbone.config.get_text_config().max_position_embeddings)


def end_tokens(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Token ids that end a reply: the generation config's and the tokenizer's."""
    configured = backbone.generation_config.eos_token_id if backbone.generation_config is not None else None
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*ends, tokenizer.eos_token_id] if i is not None)
