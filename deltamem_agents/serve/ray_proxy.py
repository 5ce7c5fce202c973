"""What Ray's proxies answer by themselves, in the shape of all other answers; and who serves whose memory.

Ray takes this by an environment variable, where its head and its other machines start:
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deltamem_agents.serve.ray_proxy.middlewares`.
"""

import json

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltamem_agents.serve.config import PREVIOUS
from deltamem_agents.serve.errors import RETRY, ApiError, send_error

REPLICA = "x-replica-id"
"""The header of an answer that names the replica: without it, Ray itself has answered."""
REQUEST, SESSION = "x-request-id", "x-session-id"
REMEMBERED = 4 * 2**20
"""So many bytes of a body, and no more, may be sent to another application as well."""
_OWN = ("/-/healthz", "/-/routes")
_CODES = {404: "not_found", 408: "timeout", 429: "queue_full", 503: "unavailable"}


def middlewares() -> list[Middleware]:
    """What Ray puts in front of its proxies."""
    return [Middleware(ProxyEdge)]


class ProxyEdge:
    """Wraps a proxy of Ray's.

    - What the proxy itself refuses, as when all replicas are busy, has OpenAI's shape.
    - A call whose replica was lost is answered 503, which says to come again, and a stream says so before it ends.
    - A call for a memory of another adapter goes to the application that still has that adapter, if there is one.

    Args:
        app: the proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or scope["path"] in _OWN:
            await self._app(scope, receive, send)
            return
        try:
            Headers(scope=scope).get(SESSION, "").encode("latin-1").decode()
        except UnicodeDecodeError:  # on which the proxy would break
            await send_error(send, ApiError(400, f"{SESSION} is no UTF-8: send it as UTF-8", code="invalid_session"))
            return
        body = _Body(receive)
        answer = _Answer(send, body)
        await self._app(dict(scope), body.receive, answer.send)
        if answer.elsewhere is not None:
            there = {part: _under(answer.elsewhere, scope[part]) for part in ("path", "raw_path")}
            answer = _Answer(send, None)
            await self._app({**scope, **there}, body.again, answer.send)
        await answer.end()


class _Body:
    """What was received of a body, to be received again."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._messages, self._size = receive, list[Message](), 0

    @property
    def whole(self) -> bool:
        """Whether all of it can be received again."""
        return self._size <= REMEMBERED

    async def receive(self) -> Message:
        """The next message."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._messages = [*self._messages, message] if self.whole else []
        return message

    async def again(self) -> Message:
        """The next message, from the first on."""
        return self._messages.pop(0) if self._messages else await self._receive()


class _Answer:
    """An answer on its way."""

    def __init__(self, send: Send, body: _Body | None) -> None:
        self.elsewhere: str | None = None
        self._send, self._body = send, body
        self._started = self._ended = self._streams = False
        self._refused: int | None = None
        self._headers = dict[str, str]()

    async def send(self, message: Message) -> None:
        """Hands a message on, if it is a replica's and meant for the client."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if REQUEST in headers:
                headers[REQUEST] = headers[REQUEST]  # once: Ray adds it to the replica's
            if self._body is not None and self._body.whole and message["status"] == 409:
                self.elsewhere = headers.get(PREVIOUS)
            if REPLICA not in headers and message["status"] >= 400:
                self._refused, self._headers = message["status"], dict(headers)
            self._streams = headers.get("content-type", "").startswith("text/event-stream")
        if self.elsewhere is not None or self._refused is not None:
            return
        self._started = True
        self._ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def end(self) -> None:
        """Says what is left to say."""
        if self._refused is not None:
            await send_error(self._send, _refusal(self._refused, self._headers))
        elif not self._started:
            await send_error(self._send, _lost())
        elif self._streams and not self._ended:
            data = json.dumps(_lost().body)
            await self._send({"type": "http.response.body", "body": f"data: {data}\n\ndata: [DONE]\n\n".encode()})


def _refusal(status: int, headers: dict[str, str]) -> ApiError:
    """An answer of Ray's own."""
    messages = {
        404: "no application is deployed at this path: check it, or deploy one",
        408: "the answer took longer than the proxy waits: ask for less, or raise request_timeout_s",
        429: "all replicas are busy, and as many calls wait as are let in: try again later",
        503: "no replica can answer: try again later; `serve status` tells why",
    }
    again = {name: value for name, value in headers.items() if name == "retry-after"}
    again = again or (RETRY if status in (429, 503) else {})
    message = messages.get(status, "the proxy failed: see its log")
    return ApiError(status, message, code=_CODES.get(status, "internal_error"), headers=again)


def _lost() -> ApiError:
    return ApiError(
        503,
        "the replica that worked on this was lost, perhaps after it had kept the turn: send the same again, with the "
        "same ids of messages, and nothing is kept twice",
        code="replica_lost",
        headers={"Retry-After": "1"},
    )


def _under(prefix: str, path: str | bytes) -> str | bytes:
    return prefix + path if isinstance(path, str) else prefix.encode() + path
