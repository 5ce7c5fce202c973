"""Every error this package raises on purpose, as one tree.

    DeltaMemError
    ├── ConfigError            an option, or a combination of options, that cannot be served       (ValueError)
    ├── AdapterError           an adapter that cannot be loaded, or does not fit                   (ValueError)
    │   └── FingerprintError   a state or adapter that belongs to another backbone or adapter
    ├── BackboneError          a model that cannot be found, loaded or fetched                     (OSError)
    │   └── UnsupportedArchitectureError   a model whose attention the memory cannot be attached to
    ├── StateError             a memory state that is corrupt, foreign or of the wrong shape       (ValueError)
    ├── MessageError           messages that cannot be understood or rendered                      (ValueError)
    │   └── ContextOverflowError   a message that does not fit the backbone's context
    ├── SessionError           a session name or operation that is not valid                       (ValueError)
    │   └── SessionNotFoundError   a session that does not exist                                   (LookupError)
    ├── StoreError             a store that cannot be opened, read or written                      (OSError)
    │   └── ConflictError      somebody else moved the session's head first
    ├── GenerationError        a generation that was asked for wrongly or broke down               (RuntimeError)
    └── TrainingError          a training run that cannot go on                                    (RuntimeError)

Each message says what was found, what was expected, and what to do.
"""

import difflib
from collections.abc import Callable, Iterable


class DeltaMemError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(DeltaMemError, ValueError):
    """An option, or a combination of options, that cannot be served."""


class AdapterError(DeltaMemError, ValueError):
    """An adapter that cannot be loaded, or whose tensors do not fit the backbone."""


class FingerprintError(AdapterError):
    """A state or an adapter that belongs to another backbone or adapter."""


class BackboneError(DeltaMemError, OSError):
    """A model that cannot be found, loaded or fetched."""


class UnsupportedArchitectureError(BackboneError):
    """A model whose attention modules the memory cannot be attached to."""


class StateError(DeltaMemError, ValueError):
    """A memory state that is corrupt, foreign or of the wrong shape."""


class MessageError(DeltaMemError, ValueError):
    """Messages that cannot be understood or rendered."""


class ContextOverflowError(MessageError):
    """A message, or a prompt that must stay whole, that does not fit the backbone's context."""


class SessionError(DeltaMemError, ValueError):
    """A session name or an operation on a session that is not valid."""


class SessionNotFoundError(SessionError, LookupError):
    """A session that does not exist in this store."""


class StoreError(DeltaMemError, OSError):
    """A store that cannot be opened, read or written."""


class ConflictError(StoreError):
    """Somebody else moved the session's head first."""


class GenerationError(DeltaMemError, RuntimeError):
    """A generation that was asked for wrongly, or that broke down."""


class TrainingError(DeltaMemError, RuntimeError):
    """A training run that cannot go on."""


def did_you_mean(name: str, known: Iterable[str], *, show: Callable[[str], str] = str) -> str:
    """The end of a message about a name that isn't there: which one may have been meant, or nothing.

    Args:
        name: the name.
        known: those that are there.
        show: how a name is written.
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {show(near[0])}?" if near else ""
