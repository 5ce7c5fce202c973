"""LlamaIndex: memory for chat engines and agents that is a δ-mem state, not a growing prompt."""

from llama_index_deltamem.block import DeltaMemoryBlock
from llama_index_deltamem.engines import EngineNotFoundError, register_engine
from llama_index_deltamem.llm import DeltaMemLLM
from llama_index_deltamem.memory import DeltaMemory

__all__ = ["DeltaMemLLM", "DeltaMemory", "DeltaMemoryBlock", "EngineNotFoundError", "register_engine"]
