"""Engines shared by all chat models of a process that ask for the same one."""

import threading
from pathlib import Path

from deltamem_agents import DeltaMemEngine, RemoteEngine, StateStore

_engines: dict[tuple[object, ...], DeltaMemEngine] = {}
_servers: dict[tuple[object, ...], RemoteEngine] = {}
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


def remote_engine(url: str, api_key: str | None, timeout: float | None) -> RemoteEngine:
    """The engine behind a server, reached when first asked for."""
    key = (url, api_key, timeout)
    with _lock:
        if key not in _servers:
            limits = {} if timeout is None else {"timeout": timeout}
            _servers[key] = DeltaMemEngine.connect(url, api_key=api_key, **limits)
        return _servers[key]
