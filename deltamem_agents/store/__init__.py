"""Stores of sessions: immutable snapshots, heads that point at them, and the ledgers of their messages."""

from deltamem_agents.store.base import StateStore
from deltamem_agents.store.memory import MemoryStore
from deltamem_agents.store.opening import open_store
from deltamem_agents.store.records import Entry, Kind, SessionInfo, Snapshot
from deltamem_agents.store.sql import SQLStore
from deltamem_agents.store.transfer import export_session, import_session

__all__ = [
    "Entry",
    "Kind",
    "MemoryStore",
    "SQLStore",
    "SessionInfo",
    "Snapshot",
    "StateStore",
    "export_session",
    "import_session",
    "open_store",
]
