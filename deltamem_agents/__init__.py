"""Δ-Mem for agents: a frozen Hugging Face LLM with an online memory that persists by naming a session."""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel, DeltaMemOutput
    from deltamem_agents.backbone.bundled import bundled_is_cached, bundled_path
    from deltamem_agents.backbone.tools import Tool, ToolUse
    from deltamem_agents.config import DeltaMemConfig, Role
    from deltamem_agents.engine import (
        DeltaMemEngine,
        Engine,
        MemoryMode,
        MemoryView,
        Recollection,
        RemoteEngine,
        Session,
        Transcript,
        Turn,
        Usage,
        located_model,
        located_store,
        shared_engine,
    )
    from deltamem_agents.errors import (
        AdapterError,
        BackboneError,
        ConfigError,
        ConflictError,
        ContextOverflowError,
        DeltaMemError,
        FingerprintError,
        GenerationError,
        MessageError,
        SessionError,
        SessionNotFoundError,
        StateError,
        StoreError,
        TrainingError,
        UnsupportedArchitectureError,
    )
    from deltamem_agents.generation import GenerationOptions
    from deltamem_agents.messages import Message, MessageLike, ToolCall, as_messages, check_tool_messages
    from deltamem_agents.state import MemoryState
    from deltamem_agents.store import (
        Entry,
        MemoryStore,
        SessionInfo,
        Snapshot,
        SQLStore,
        StateStore,
        export_session,
        import_session,
    )

__all__ = [
    "AdapterError",
    "BackboneError",
    "ConfigError",
    "ConflictError",
    "ContextOverflowError",
    "DeltaMemAdapter",
    "DeltaMemConfig",
    "DeltaMemEngine",
    "DeltaMemError",
    "DeltaMemModel",
    "DeltaMemOutput",
    "Engine",
    "Entry",
    "FingerprintError",
    "GenerationError",
    "GenerationOptions",
    "MemoryMode",
    "MemoryState",
    "MemoryStore",
    "MemoryView",
    "Message",
    "MessageError",
    "MessageLike",
    "Recollection",
    "RemoteEngine",
    "Role",
    "SQLStore",
    "Session",
    "SessionError",
    "SessionInfo",
    "SessionNotFoundError",
    "Snapshot",
    "StateError",
    "StateStore",
    "StoreError",
    "Tool",
    "ToolCall",
    "ToolUse",
    "TrainingError",
    "Transcript",
    "Turn",
    "UnsupportedArchitectureError",
    "Usage",
    "as_messages",
    "bundled_is_cached",
    "bundled_path",
    "check_tool_messages",
    "export_session",
    "import_session",
    "located_model",
    "located_store",
    "shared_engine",
]

_HOMES = {
    "adapter": (
        "DeltaMemAdapter",
        "DeltaMemModel",
        "DeltaMemOutput",
    ),
    "backbone.bundled": (
        "bundled_is_cached",
        "bundled_path",
    ),
    "backbone.tools": (
        "Tool",
        "ToolUse",
    ),
    "config": (
        "DeltaMemConfig",
        "Role",
    ),
    "engine": (
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
    ),
    "errors": (
        "AdapterError",
        "BackboneError",
        "ConfigError",
        "ConflictError",
        "ContextOverflowError",
        "DeltaMemError",
        "FingerprintError",
        "GenerationError",
        "MessageError",
        "SessionError",
        "SessionNotFoundError",
        "StateError",
        "StoreError",
        "TrainingError",
        "UnsupportedArchitectureError",
    ),
    "generation": ("GenerationOptions",),
    "messages": (
        "Message",
        "MessageLike",
        "ToolCall",
        "as_messages",
        "check_tool_messages",
    ),
    "state": ("MemoryState",),
    "store": (
        "Entry",
        "MemoryStore",
        "SessionInfo",
        "Snapshot",
        "SQLStore",
        "StateStore",
        "export_session",
        "import_session",
    ),
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used: torch takes seconds, and not every command needs it."""
    if name == "__version__":
        return metadata.version("deltamem-agents")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
