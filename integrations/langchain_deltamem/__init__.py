"""LangChain: a chat model whose memory is a δ-mem state, not a growing prompt."""

try:
    from langchain_deltamem.chat_model import ChatDeltaMem
    from langchain_deltamem.middleware import DeltaMemMiddleware
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("langchain", "langchain_core", "langgraph"):
        raise
    raise ModuleNotFoundError(
        f"{error.name} is not installed, which this package is for: pip install 'deltamem-agents[langchain]'",
        name=error.name,
    ) from error

__all__ = ["ChatDeltaMem", "DeltaMemMiddleware"]
