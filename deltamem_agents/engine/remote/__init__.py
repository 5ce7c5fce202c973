"""An engine behind a server: the same calls, over HTTP, with the same errors."""

from deltamem_agents.engine.remote.engine import RemoteEngine

__all__ = ["RemoteEngine"]
