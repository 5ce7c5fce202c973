"""Which store a short description means."""

from pathlib import Path

from platformdirs import user_data_path

from deltamem_agents.errors import StoreError
from deltamem_agents.store.base import StateStore
from deltamem_agents.store.memory import MemoryStore
from deltamem_agents.store.sql import SQLStore


def open_store(spec: StateStore | str | Path | None = None) -> StateStore:
    """Opens a store.

    Args:
        spec: A store, which is returned as it is; "memory"; a database URL; a SQLite file; or None for the file
            `sessions.db` in the user's data folder.

    Raises:
        StoreError: if it is none of these, or cannot be opened.
    """
    if spec is None:
        default_path().parent.mkdir(parents=True, exist_ok=True)
        return SQLStore(default_path())
    if spec in ("memory", ":memory:"):
        return MemoryStore()
    if isinstance(spec, str | Path):
        return SQLStore(spec)
    if not isinstance(spec, StateStore):
        raise StoreError(
            f"store is {spec!r} ({type(spec).__name__}), expected a StateStore, a path, a database URL, ':memory:' or "
            "None: give one of these"
        )
    return spec


def default_path() -> Path:
    """The file that sessions live in where no store is named; it need not exist."""
    return user_data_path("deltamem-agents") / "sessions.db"
