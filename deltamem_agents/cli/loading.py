"""Loading an engine while somebody watches."""

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING

from deltamem_agents.backbone.bundled import bundled_path
from deltamem_agents.cli.console import err
from deltamem_agents.errors import ConfigError

if TYPE_CHECKING:
    from deltamem_agents.engine import DeltaMemEngine
    from deltamem_agents.store import StateStore

BUNDLED = "bundled"


def load_engine(
    model: str,
    *,
    adapter: str | None,
    store: "StateStore | str | None",
    recent_messages: int = 8,
    max_batch: int = 16,
    prefill_chunk: int = 128,
    device: str | None = None,
    dtype: str = "auto",
    model_kwargs: str = "{}",
    weights: str = "full",
    spinner: bool = True,
) -> "DeltaMemEngine":
    """Loads a model with its adapter and opens a store; see `DeltaMemEngine.from_pretrained`.

    Args:
        model: "bundled", a folder, or a hub id.
        adapter: a folder or hub id; the folder of a training run stands for the adapter in it.
        store: where sessions live.
        recent_messages: how many recent messages are also in the prompt.
        max_batch: how many turns decode together, at most.
        prefill_chunk: tokens of prompts that are fed between two tokens of those that decode.
        device: where to put the model.
        dtype: of its weights.
        model_kwargs: more of what transformers takes, as a JSON object.
        weights: "full", or "int8" for rounded ones on a CPU.
        spinner: whether a terminal shows that it takes a while; not where a log goes there.

    Raises:
        ConfigError: `model_kwargs` is no JSON object, or there are no such weights.
        BackboneError: the model cannot be found or loaded.
        AdapterError: the adapter cannot be found or loaded, or does not fit.
        StoreError: the store cannot be opened.
    """
    more = json_object(model_kwargs, option="--model-kwargs", example='{"revision": "v2"}')
    if model == BUNDLED:
        bundled_path()  # has a progress bar of its own
    with err.status(f"Loading {model}") if spinner else nullcontext():
        from transformers.utils import logging  # here: importing torch and transformers takes seconds

        from deltamem_agents.engine import DeltaMemEngine

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        return DeltaMemEngine.from_pretrained(
            model,
            adapter=adapter,
            store=store,
            recent_messages=recent_messages,
            max_batch=max_batch,
            prefill_chunk=prefill_chunk,
            device=device,
            dtype=dtype,
            model_kwargs=more,
            weights=weights,  # type: ignore[arg-type]  # checked there
        )


def json_object(text: str, *, option: str, example: str) -> dict[str, object]:
    """Reads an option that is a JSON object.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{option} is {text!r}, expected a JSON object, as in {example}: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{option} is {text!r}, expected a JSON object, as in {example}")
    return found
