"""Errors that both LangChain's and this package's users can catch by the name they know."""

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import ContextOverflowError as LangChainContextOverflowError
from langchain_core.exceptions import ModelInvalidRequestError, ModelNotFoundError

from deltamem_agents import (
    AdapterError,
    BackboneError,
    ConfigError,
    ContextOverflowError,
    DeltaMemError,
    Engine,
    FingerprintError,
    GenerationError,
    GenerationOptions,
    MessageError,
    SessionError,
    SessionNotFoundError,
    StateError,
    UnsupportedArchitectureError,
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


class ChatAdapterError(AdapterError, ModelInvalidRequestError):
    """An adapter that cannot be loaded or does not fit."""


class ChatFingerprintError(FingerprintError, ModelInvalidRequestError):
    """A session or adapter that belongs to another model."""


class ChatUnsupportedArchitectureError(UnsupportedArchitectureError, ModelInvalidRequestError):
    """A model that the memory cannot be attached to."""


class ChatStateError(StateError, ModelInvalidRequestError):
    """A memory that is damaged."""


class ChatSessionNotFoundError(SessionNotFoundError, ModelInvalidRequestError):
    """A session that was forgotten while the call was under way."""


_KNOWN: dict[type[DeltaMemError], type[DeltaMemError]] = {
    AdapterError: ChatAdapterError,
    BackboneError: ChatModelNotFoundError,
    ConfigError: ChatConfigError,
    ContextOverflowError: ChatContextOverflowError,
    FingerprintError: ChatFingerprintError,
    MessageError: ChatMessageError,
    SessionError: ChatSessionError,
    SessionNotFoundError: ChatSessionNotFoundError,
    StateError: ChatStateError,
    UnsupportedArchitectureError: ChatUnsupportedArchitectureError,
}
"""What trying again cannot help. A store that is locked and a generation that broke down are errors of their own."""


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


def check_open(engine: Engine) -> Engine:
    """Gives the engine back.

    Raises:
        ChatConfigError: it has been closed.
    """
    if engine.closed:
        raise ChatConfigError(
            "this engine is closed: make the chat model with an open one (engine=…), or name model, adapter and store, "
            "and it opens them itself"
        )
    return engine
