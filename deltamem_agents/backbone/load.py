"""Loading backbones: the bundled one, a local folder, or a hub id."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.adapter.named import located
from deltamem_agents.backbone.bundled import bundled_path
from deltamem_agents.backbone.dtypes import widened
from deltamem_agents.backbone.int8 import Weights, quantized
from deltamem_agents.errors import BackboneError, ConfigError, UnsupportedArchitectureError

BUNDLED = "bundled"
"""The name under which the bundled backbone goes wherever a model is asked for."""
WHERE_FROM = (
    "cache_dir code_revision force_download gguf_file local_files_only proxies revision subfolder token "
    "trust_remote_code"
).split()
"""Options of transformers that say where files come from: a model and its tokenizer come from the same place."""
TOKENIZER_FILES = ("tokenizer.", "tokenization_", "vocab", "merges.", "spiece.", "sentencepiece.", "tekken.")
"""How the names of files begin of which a tokenizer has one at least."""

LONGEST_REPEAT = 16
"""Tokens: greedy replies of the bundled backbone loop, so they hold no longer run twice. A repetition penalty would end
loops too, but it forbids what a memory is asked for: at 1.1, half of the facts that were told were not recalled."""


def load_backbone(
    model: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    model_kwargs: dict[str, object] | None = None,
    weights: Weights = "full",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal LM and its tokenizer, ready for inference.

    Args:
        model: "bundled", a folder, or a hub id.
        device: where to put it; None: on a GPU if there is one, unless `model_kwargs` say how it is placed.
        dtype: of the weights; "auto" takes the checkpoint's own, or float32 for half precision on a CPU that has no
            instructions for it, if memory suffices.
        model_kwargs: anything else `AutoModelForCausalLM.from_pretrained` takes, such as `device_map` or
            `quantization_config`. What says where the files come from, such as `revision`, `subfolder` or `token`,
            counts for the tokenizer too.
        weights: "int8" rounds the weights of linear layers to int8 on a CPU, for about a quarter of their bytes and
            faster decoding; everything else is then float32. Where that can't be, a warning says so.

    Raises:
        ConfigError: `weights` is neither of these, or doesn't go with this `dtype`.
        BackboneError: there is no such model, it cannot be loaded, or weights are missing in it.
        UnsupportedArchitectureError: it is no causal LM.
    """
    path = bundled_path() if model == BUNDLED else located(model)
    options = {"dtype": dtype, **(model_kwargs or {})}
    _check_weights(weights, options["dtype"])
    if device is None and not {"device_map", "quantization_config"} & options.keys() and torch.cuda.is_available():
        device = "cuda"
    try:
        loaded: object = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
        backbone, found = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
        backbone = (backbone if device is None else backbone.to(device)).eval()  # type: ignore[arg-type]
    except ValueError as error:
        raise UnsupportedArchitectureError(f"{model} is not a causal LM that transformers can load: {error}") from error
    except Exception as error:  # transformers, safetensors and torch raise anything, bare Exceptions too
        raise _unloadable(model, "model", error) from error
    if missing := sorted(found["missing_keys"]):
        raise BackboneError(
            f"{model} has no weights for {len(missing)} parameters of its architecture, such as {missing[0]}, and they "
            "would be random: expected a complete checkpoint of a causal LM; check the folder's files"
        )
    if weights == "int8":
        backbone = quantized(backbone)
    if options["dtype"] == "auto" and not getattr(backbone, "is_quantized", False):
        backbone = widened(backbone)
    if model == BUNDLED:
        backbone.generation_config.no_repeat_ngram_size = LONGEST_REPEAT
    return backbone, load_tokenizer(path, options)


def load_tokenizer(path: str | Path, options: Mapping[str, object]) -> PreTrainedTokenizerBase:
    """Loads a model's tokenizer.

    Args:
        path: the model's folder, or hub id.
        options: of them, those that say where files come from are used.

    Raises:
        BackboneError: there is none, or it cannot be loaded.
    """
    where = {name: value for name, value in options.items() if name in WHERE_FROM}
    try:
        return AutoTokenizer.from_pretrained(path, **where)
    except Exception as error:  # transformers and tokenizers raise anything
        folder = Path(path, str(where.get("subfolder", "")))
        if folder.is_dir() and not any(file.name.startswith(TOKENIZER_FILES) for file in folder.iterdir()):
            raise BackboneError(
                f"{folder} has a config but no tokenizer (tokenizer.json or tokenizer.model): copy it from where the "
                "model came from"
            ) from error
        raise _unloadable(path, "tokenizer", error) from error


def _check_weights(weights: str, dtype: object) -> None:
    if weights not in get_args(Weights):
        raise ConfigError(f'weights is {weights!r}, expected "full" or "int8"')
    if weights == "int8" and dtype not in ("auto", "float32", torch.float32):
        raise ConfigError(
            f'weights="int8" computes in float32, and dtype is {dtype}: leave one of the two out'
        )


def _unloadable(model: str | Path, part: str, error: Exception) -> BackboneError:
    return BackboneError(
        f"the {part} of {str(model)!r} could not be loaded ({type(error).__name__}: {error}): check the name, the "
        "folder's files, the device, or the network"
    )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identifies a tokenizer by its vocabulary."""
    vocabulary = "\n".join(f"{i} {token}" for token, i in sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:8]


def context_length(backbone: PreTrainedModel) -> int:
    """How many tokens the backbone can attend to.

    Raises:
        UnsupportedArchitectureError: its config doesn't say.
    """
    length = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(length, int):
        raise UnsupportedArchitectureError(
            f"the config of {type(backbone).__name__} has max_position_embeddings={length!r}, expected how many tokens "
            "the model can attend to: set it in the model's config"
        )
    return length


def end_tokens(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Token ids that end a reply: the generation config's and the tokenizer's."""
    settings = backbone.generation_config
    configured = settings.eos_token_id if settings is not None else None  # type: ignore[redundant-expr]
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*ends, tokenizer.eos_token_id] if i is not None)
