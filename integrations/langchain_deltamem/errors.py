"""Errors that both LangChain's and this package's users can catch by the name they know."""

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import ContextOverflowError as LangChainContextOverflowError
from langchain_core.exceptions import ModelInvalidRequestError, ModelNotFoundError

from deltamem_agents import (
    BackboneError,
    ConfigError,
    ContextOverflowError,
    DeltaMemError,
    GenerationError,
    GenerationOptions,
    MessageError,
    SessionError,
)


class ChatContextOverflowError(ContextOverflowError, LangChainContextOverflowError):
    """Messages that don't fit the context: LangChain's error of this name, and `deltamem_agents`' own."""


class ChatMessageError(MessageError, ModelInvalidRequestError):
    """Messages that the model cannot take."""


class ChatConfigError(ConfigError, ModelInvalidRequestError):
    """A tool, a tool choice or another option that cannot be served."""


class ChatOptionsError(GenerationError, ModelInvalidRequestError):
    """Unknown options, bad values of known ones, and formats that no reply can have."""


class ChatSessionError(SessionError, ModelInvalidRequestError):
    """A session that is named badly, or that the messages don't belong to."""


class ChatModelNotFoundError(BackboneError, ModelNotFoundError):
    """A model that cannot be found or loaded."""


_KNOWN: dict[type[DeltaMemError], type[DeltaMemError]] = {
    BackboneError: ChatModelNotFoundError,
    ConfigError: ChatConfigError,
    ContextOverflowError: ChatContextOverflowError,
    MessageError: ChatMessageError,
    SessionError: ChatSessionError,
}


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Raises the engine's errors as those that LangChain knows, too."""
    try:
        yield
    except DeltaMemError as error:
        if (known := _KNOWN.get(type(error))) is None:
            raise
        raise known(str(error)) from error


def check_options(options: dict[str, object]) -> None:
    """Checks generation options before there is anything to generate.

    Raises:
        ChatOptionsError: names each unknown option and bad value.
    """
    try:
        GenerationOptions.parse(options)
    except GenerationError as error:
        raise ChatOptionsError(str(error)) from error
