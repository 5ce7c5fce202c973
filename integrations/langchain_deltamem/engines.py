"""Engines shared by all chat models of a process that ask for the same one."""

import threading
from pathlib import Path

from deltamem_agents import DeltaMemEngine, StateStore

_engines: dict[tuple[object, ...], DeltaMemEngine] = {}
_lock = threading.Lock()


def shared_engine(
    model: str, adapter: str | None, store: StateStore | Path | str | None, device: str | None, dtype: str
) -> DeltaMemEngine:
    """The engine for these arguments, loaded when first asked for."""
    place = str(store) if isinstance(store, str | Path) else None if store is None else id(store)
    key = (model, adapter, place, device, dtype)
    with _lock:
        if key not in _engines:
            _engines[key] = DeltaMemEngine.from_pretrained(
                model, adapter=adapter, store=store, device=device, dtype=dtype
            )
        return _engines[key]
