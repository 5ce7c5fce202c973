"""The engines of this process by name: LlamaIndex stores a memory as JSON, and an engine cannot be in it."""

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path

from deltamem_agents import ConfigError, Engine, StateStore, shared_engine

_engines: dict[str, Engine] = {}
_lock = threading.RLock()


class EngineNotFoundError(ConfigError, LookupError):
    """An engine that this process does not have."""


def register_engine(engine: Engine, name: str | None = None) -> str:
    """Makes an engine known, so that memories and LLMs that were stored as JSON or pickled find it again.

    `DeltaMemory(engine=…)` and `DeltaMemLLM(engine=…)` do this by themselves.

    Args:
        engine: the engine.
        name: what it is found by; by default a digest of its model and adapter, the same in every process.

    Returns:
        The name it is known by: that of an earlier call, where no other is given.

    Raises:
        ConfigError: another engine, which is open, goes by this name.
    """
    with _lock:
        known = next((id for id, other in _engines.items() if other is engine and name in (None, id)), None)
        if known is not None:
            return known
        name = name or f"engine-{hashlib.sha256(engine.fingerprint.encode()).hexdigest()[:12]}"
        if name in _engines and not _engines[name].closed:
            raise ConfigError(
                f"another engine is registered as {name!r}: the same model and adapter with another store, or opened "
                "twice; share one engine, close the other, or tell them apart by register_engine(engine, 'a name')"
            )
        _engines[name] = engine
        return name


def find_engine(name: str) -> Engine:
    """The engine of this name.

    Raises:
        EngineNotFoundError: this process has none.
    """
    with _lock:
        if name in _engines:
            return _engines[name]
        known = ", ".join(map(repr, sorted(_engines))) or "none is"
    raise EngineNotFoundError(
        f"no engine {name!r} is registered in this process (registered: {known}): open the model, adapter and store "
        "that the memory was made with, and pass the engine to DeltaMemLLM(engine=…), DeltaMemory(engine=…) or "
        f"register_engine(engine, {name!r}) before the memory is used"
    )


def load_engine(
    model: str,
    *,
    adapter: str | None,
    store: StateStore | Path | str | None,
    device: str | None,
    dtype: str,
    model_kwargs: Mapping[str, object] | None,
    name: str | None,
) -> str:
    """Loads an engine, once for the same arguments, and registers it; gives its name."""
    with _lock:
        engine = shared_engine(
            model, adapter=adapter, store=store, device=device, dtype=dtype, model_kwargs=model_kwargs
        )
        return register_engine(engine, name)
