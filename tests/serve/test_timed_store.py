"""The store whose calls are timed is a store like any other."""

import inspect
from pathlib import Path

import pytest

from deltamem_agents import StoreError
from deltamem_agents.serve.metrics import Metrics
from deltamem_agents.store import MemoryStore, StateStore, open_store

METHODS = sorted(name for name, member in vars(StateStore).items() if inspect.isfunction(member) and name[0] != "_")


def test_it_has_all_methods_where_every_python_looks_for_them() -> None:
    """From 3.12 on, isinstance with a protocol finds what `inspect.getattr_static` does, and asks no `__getattr__`."""
    store = Metrics("m").timed(MemoryStore())
    assert {"session", "commit", "forget", "close"} <= set(METHODS)
    for name in [*METHODS, "__enter__", "__exit__"]:
        assert callable(inspect.getattr_static(store, name))
    assert isinstance(store, StateStore)
    assert open_store(store) is store


def test_calls_come_through_and_are_counted(tmp_path: Path) -> None:
    metrics = Metrics("m")
    with metrics.timed(open_store(tmp_path / "store.db")) as store:
        assert store.sessions(prefix="a", limit=3) == []
        assert store.count() == 0
        with pytest.raises(StoreError, match="nothing"):
            store.snapshot("nothing")
    figures = metrics.text().decode()
    for name in ("sessions", "count", "snapshot"):
        assert f'store_latency_seconds_count{{model_name="m",operation="{name}"}} 1.0' in figures
    with pytest.raises(StoreError, match="closed"):
        store.sessions()
