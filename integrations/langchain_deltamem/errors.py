"""Errors that both LangChain's and this package's users can catch by the name they know."""

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import ContextOverflowError as LangChainContextOverflowError

from deltamem_agents import ContextOverflowError


class ChatContextOverflowError(ContextOverflowError, LangChainContextOverflowError):
    """Messages that don't fit the context: LangChain's error of this name, and `deltamem_agents`' own."""


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Raises the engine's errors as those that LangChain knows."""
    try:
        yield
    except ContextOverflowError as error:
        raise ChatContextOverflowError(str(error)) from error
