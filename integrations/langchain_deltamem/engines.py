"""Servers that all chat models of a process share which ask for the same one."""

import threading

from deltamem_agents import DeltaMemEngine, RemoteEngine

_servers: dict[tuple[object, ...], RemoteEngine] = {}
_lock = threading.Lock()


def remote_engine(url: str, api_key: str | None, timeout: float | None) -> RemoteEngine:
    """The engine behind a server, reached when first asked for, and again if it has been closed since."""
    key = (url, api_key, timeout)
    with _lock:
        if key not in _servers or _servers[key].closed:
            limits = {} if timeout is None else {"timeout": timeout}
            _servers[key] = DeltaMemEngine.connect(url, api_key=api_key, **limits)
        return _servers[key]
