"""The engine: sessions, turns and windows on one frozen model."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltamem_agents.engine.engine import DeltaMemEngine
    from deltamem_agents.engine.inspection import MemoryView
    from deltamem_agents.engine.records import MemoryMode, Recollection, Transcript, Turn, Usage
    from deltamem_agents.engine.remote import RemoteEngine
    from deltamem_agents.engine.session import Engine, Session
    from deltamem_agents.engine.sharing import located_model, located_store, shared_engine

__all__ = [
    "DeltaMemEngine",
    "Engine",
    "MemoryMode",
    "MemoryView",
    "Recollection",
    "RemoteEngine",
    "Session",
    "Transcript",
    "Turn",
    "Usage",
    "located_model",
    "located_store",
    "shared_engine",
]

_HOMES = {
    "DeltaMemEngine": "engine",
    "Engine": "session",
    "MemoryView": "inspection",
    "RemoteEngine": "remote",
    "Session": "session",
}
_HOMES |= dict.fromkeys(("located_model", "located_store", "shared_engine"), "sharing")


def __getattr__(name: str) -> object:
    """Imports a name when it is first used: what reads a store alone need not wait for a model's libraries."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'records')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
