"""What a backbone calls its KV cache: from 5.24 on, transformers renames it, model by model."""

import inspect

from torch import nn


def cache_name(backbone: nn.Module) -> str:
    """The name of the KV cache among the arguments of a backbone's forward, and in what that gives.

    Returns:
        "cache" where its class's forward has such an argument, or else "past_key_values".
    """
    return "cache" if "cache" in inspect.signature(type(backbone).forward).parameters else "past_key_values"
