"""LangChain: a chat model whose memory is a δ-mem state, not a growing prompt."""

from langchain_deltamem.chat_model import ChatDeltaMem

__all__ = ["ChatDeltaMem"]
