"""`deltamem serve`: one model, many users, over HTTP in OpenAI's shape, with a memory for each session."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltamem_agents.serve.app import create_app
    from deltamem_agents.serve.config import ServeConfig
    from deltamem_agents.serve.run import serve

__all__ = ["ServeConfig", "create_app", "serve"]

_HOMES = {"ServeConfig": "config", "create_app": "app", "serve": "run"}


def __getattr__(name: str) -> object:
    """Imports a name when it is first used: what runs in Ray's proxies needs no torch, which takes seconds."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
