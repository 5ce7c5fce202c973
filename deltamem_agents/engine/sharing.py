"""One engine for all of a process that ask for the same one."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from deltamem_agents.adapter import DeltaMemAdapter
from deltamem_agents.backbone.int8 import Weights
from deltamem_agents.backbone.load import BUNDLED
from deltamem_agents.engine.engine import DeltaMemEngine
from deltamem_agents.store import StateStore
from deltamem_agents.store.opening import default_path

_engines: dict[tuple[object, ...], tuple[DeltaMemEngine, object]] = {}
_lock = threading.Lock()


def shared_engine(
    model: str | Path,
    *,
    adapter: DeltaMemAdapter | str | Path | None = None,
    store: StateStore | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    model_kwargs: Mapping[str, object] | None = None,
    weights: Weights = "full",
) -> DeltaMemEngine:
    """The engine for these arguments, loaded when first asked for, and again if it is closed or another process's.

    Paths mean what they mean in the working directory of the call, and two spellings of one file are one engine.
    `:memory:` is one store for the process.

    Args:
        model: "bundled", a folder, or a hub id of a causal LM.
        adapter: an adapter, its folder or hub id; None takes the default one.
        store: where sessions live.
        device: where to put the model.
        dtype: of the backbone's weights.
        model_kwargs: anything else transformers' `from_pretrained` takes.
        weights: "int8" rounds the backbone's weights on a CPU.

    Raises:
        BackboneError: the model cannot be found or loaded.
        AdapterError: the adapter cannot be found or loaded, or does not fit.
        StoreError: the store cannot be opened.
    """
    model, store = located_model(model), located_store(store)
    adapter = adapter if adapter is None or isinstance(adapter, DeltaMemAdapter) else located_model(adapter)
    given = dict(model_kwargs or {})
    told_apart = [one if isinstance(one, str | None) else id(one) for one in (adapter, store)]
    options = sorted((name, repr(value)) for name, value in given.items())
    key = (os.getpid(), model, *told_apart, str(device), str(dtype), weights, *options)
    with _lock:
        if key not in _engines or _engines[key][0].closed:
            engine = DeltaMemEngine.from_pretrained(
                model, adapter=adapter, store=store, device=device, dtype=dtype, model_kwargs=given, weights=weights
            )
            _engines[key] = engine, (adapter, given)  # kept, so that nothing else gets their ids
        return _engines[key][0]


def located_model(name: str | Path) -> str:
    """A folder by its full path, which means the same in every working directory; other names as they are."""
    if name == BUNDLED:
        return BUNDLED
    folder = Path(name).expanduser()
    return str(folder.resolve()) if isinstance(name, Path) or folder.is_dir() else name


def located_store(store: StateStore | str | Path | None) -> StateStore | str:
    """A SQLite file by its full path, however it is spelled; None: the default one. Other stores as they are."""
    if store is None:
        return str(default_path().resolve())
    if store in ("memory", ":memory:"):
        return ":memory:"
    if isinstance(store, str) and "://" in store:
        try:
            url = make_url(store)
        except ArgumentError:  # refused by the store, with what is wrong with it
            return store
        file = url.database or ":memory:"
        if url.get_backend_name() != "sqlite" or file == ":memory:" or file.startswith("file:"):
            return store
        path = str(Path(file).resolve())
        plain = url.drivername == "sqlite" and not url.query
        return path if plain else url.set(database=path).render_as_string(hide_password=False)
    return str(Path(store).expanduser().resolve()) if isinstance(store, str | Path) else store
