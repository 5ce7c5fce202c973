"""Whose memory is a request about? The first that says counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from pydantic import BaseModel

from deltamem_agents.serve.errors import ApiError

HEADERS = ("x-session-id", "x-session-affinity", "x-openwebui-user-id")
THREAD_HEADER = "x-openwebui-chat-id"
FIELDS = ("session_id", "conversation", "prompt_cache_key", "user")


@dataclass(frozen=True, slots=True)
class Whose:
    """A session, as its holder knows it, and the line of conversation in it."""

    session: str | None
    thread: str | None


def whose(headers: Mapping[str, str], body: BaseModel) -> Whose:
    """Finds the session in headers and body, in the order of `HEADERS` and `FIELDS`; None: the frozen model.

    Raises:
        ApiError: a header or field is there, and empty.
    """
    named = [(name, _header(headers, name)) for name in HEADERS]
    named += [(name, _field(body, name)) for name in FIELDS]
    found = next(((name, value) for name, value in named if value is not None), None)
    if found is not None and not found[1]:
        raise ApiError(400, f"{found[0]} is empty: name a session, or leave it out", code="invalid_session")
    thread = _field(body, "thread")
    if thread is None and found is not None and found[0] == "x-openwebui-user-id":
        thread = _header(headers, THREAD_HEADER)
    return Whose(found[1] if found else None, thread)


def _header(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    if value is None:
        return None
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"{name} is no UTF-8: send the name as UTF-8", code="invalid_session") from error


def _field(body: BaseModel, name: str) -> str | None:
    value = getattr(body, name, None)
    return value if value is None or isinstance(value, str) else str(value.id)


def named_in_headers(session: str | None, snapshot: str | None) -> dict[str, str]:
    """Headers that name a session and a snapshot; names are percent-encoded, as headers hold ASCII only."""
    found: Sequence[tuple[str, str | None]] = (("x-session-id", session), ("x-snapshot-id", snapshot))
    return {name: quote(value, safe=" !#$&'()*+,/:;=?@[]~|{}<>^`\"\\") for name, value in found if value is not None}
