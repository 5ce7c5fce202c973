"""LangChain: a chat model whose memory is a δ-mem state, not a growing prompt."""

from langchain_deltamem.chat_model import ChatDeltaMem
from langchain_deltamem.middleware import DeltaMemMiddleware

__all__ = ["ChatDeltaMem", "DeltaMemMiddleware"]
