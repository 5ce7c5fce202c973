"""Errors as OpenAI's API shapes them: a status, and a body that says what, where and why."""

import json
import re
from collections.abc import Mapping, Sequence

from pydantic_core import ErrorDetails
from starlette.types import Send

from deltamem_agents.errors import (
    ConfigError,
    ConflictError,
    ContextOverflowError,
    DeltaMemError,
    FingerprintError,
    GenerationError,
    MessageError,
    SessionError,
    SessionNotFoundError,
    StoreError,
)

RETRY = {"Retry-After": "5"}
_STATUSES: tuple[tuple[type[DeltaMemError], int, str], ...] = (
    (ContextOverflowError, 400, "context_length_exceeded"),
    (MessageError, 400, "invalid_messages"),
    (SessionNotFoundError, 404, "session_not_found"),
    (SessionError, 400, "invalid_session"),
    (ConfigError, 400, "invalid_value"),
    (FingerprintError, 409, "fingerprint_mismatch"),
    (ConflictError, 409, "conflict"),
    (StoreError, 503, "store_unavailable"),
    (GenerationError, 500, "generation_failed"),
)


class ApiError(Exception):
    """An answer that is no success.

    Args:
        status: HTTP's.
        message: what was found, what was expected, and what to do.
        code: for programs.
        param: the field of the request that is meant, if it is one.
        exception: the name of the error of `deltamem_agents.errors` that it was, which clients raise again.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        exception: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.exception, self.headers = exception, dict(headers or {})

    @property
    def body(self) -> dict[str, object]:
        """The answer's body."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        if self.exception is not None:
            error["exception"] = self.exception
        return {"error": error}


def of_engine(error: DeltaMemError, *, hide: str = "") -> ApiError:
    """An engine's error.

    Args:
        error: the error.
        hide: the beginning of names in the store that clients don't see.
    """
    status, code = next(((s, c) for kind, s, c in _STATUSES if isinstance(error, kind)), (500, "internal_error"))
    message = str(error).replace(hide, "") if hide else str(error)
    headers = RETRY if status == 503 else {}
    return ApiError(status, message, code=code, exception=type(error).__name__, headers=headers)


def of_options(error: DeltaMemError) -> ApiError:
    """An error that an engine raised while it read a call's options: the client's, not the model's."""
    made = of_engine(error)
    if isinstance(error, GenerationError):
        made.status, made.code = 400, "invalid_value"
        named = re.search(r"\(([a-z_]+)", str(error))
        made.param = named[1] if named else None
    return made


def of_validation(errors: Sequence[ErrorDetails]) -> ApiError:
    """A body that is not well formed: the first thing that is wrong with it."""
    first = errors[0]
    where = [part for part in first["loc"] if part not in ("body", "query", "path", "header")]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}", code="bad_json")
    param = _path(where)
    if first["type"] == "extra_forbidden":
        return ApiError(
            400,
            f"{param!r} is not served: leave it out; see /docs for the fields that are",
            code="unsupported_parameter",
            param=param,
        )
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return ApiError(400, f"{param or 'the body'}: {first['msg']}", code=code, param=param)


def _path(parts: Sequence[int | str]) -> str | None:
    """Where something stands: messages[0].content. Names of alternatives, which pydantic adds, are left out."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[a-z_]+", part) and part not in ("str", "list", "dict", "int", "float", "bool"):
            text += f".{part}" if text else part
    return text or None


async def send_error(send: Send, error: ApiError) -> None:
    """Answers with an error, outside of any app."""
    body = json.dumps(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    pairs = [(name.lower().encode(), value.encode()) for name, value in (headers | error.headers).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
