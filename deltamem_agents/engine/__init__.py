"""The engine: sessions, turns and windows on one frozen model."""

from deltamem_agents.engine.engine import DeltaMemEngine
from deltamem_agents.engine.records import MemoryMode, Transcript, Turn, Usage

__all__ = ["DeltaMemEngine", "MemoryMode", "Transcript", "Turn", "Usage"]
