"""LlamaIndex: memory for chat engines and agents that is a δ-mem state, not a growing prompt."""

try:
    from llama_index_deltamem.block import DeltaMemoryBlock
    from llama_index_deltamem.engines import EngineNotFoundError, register_engine
    from llama_index_deltamem.llm import DeltaMemLLM
    from llama_index_deltamem.memory import DeltaMemory
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("llama_index", "workflows"):
        raise
    raise ModuleNotFoundError(
        f"{error.name} is not installed, which this package is for: pip install 'deltamem-agents[llama-index]'",
        name=error.name,
    ) from error

__all__ = ["DeltaMemLLM", "DeltaMemory", "DeltaMemoryBlock", "EngineNotFoundError", "register_engine"]
