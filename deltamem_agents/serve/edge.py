"""What happens to a request before the app sees it: its id, its host, the size and the time of its body, its log."""

import asyncio
import re
import time
import uuid
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltamem_agents.serve.config import ServeConfig
from deltamem_agents.serve.errors import ApiError, send_error
from deltamem_agents.serve.logs import log
from deltamem_agents.serve.metrics import Metrics

LOCAL = {"localhost", "127.0.0.1", "::1"}
GONE = 499
"""The status in the log of a client that went away, as nginx writes it."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_IMPORT = re.compile(r"(/v1/sessions/[^/]+|/page)/import")


class Edge:
    """Wraps an app.

    - Paths stay percent-encoded, so that a session's name is one part of a path, whatever it holds.
    - A body is read whole, within its limits, before the app begins; an import reads its own.
    - An answer carries the request's id, and a line of the log tells of it.

    Args:
        app: the app.
        config: limits.
        metrics: counts answers.
    """

    def __init__(self, app: ASGIApp, *, config: ServeConfig, metrics: Metrics) -> None:
        self._app, self._config, self._metrics = app, config, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        fields: dict[str, object] = {"request_id": request_id, "method": scope["method"]}
        scope = {**scope, "path": scope["raw_path"].decode("ascii"), "state": {**scope.get("state", {}), "log": fields}}
        in_app = scope["path"].removeprefix(scope.get("root_path", ""))
        started, status = time.monotonic(), GONE

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            try:
                self._check_host(headers)
                inner = receive if _IMPORT.fullmatch(in_app) else await self._read(headers, receive)
            except ApiError as error:
                await send_error(answer, error)
            else:
                await self._app(scope, inner, answer)
        except _ClientGoneError:
            pass
        finally:
            route = scope.get("route")
            fields |= {"route": getattr(route, "path", None), "status": status}
            self._metrics.answered(status)
            log.info("request", extra={"fields": {**fields, "seconds": round(time.monotonic() - started, 4)}})

    def _check_host(self, headers: Mapping[str, str]) -> None:
        """Refuses what a page on the web may send to a server that asks for no keys, through a browser here."""
        if not self._config.local_only:
            return
        host, origin = headers.get("host", ""), headers.get("origin")
        names = [urlsplit(f"//{host}").hostname, *([] if origin is None else [urlsplit(origin).hostname])]
        if not set(names) <= LOCAL:
            raise ApiError(
                403,
                "this server asks for no keys, so it answers requests from and for this machine only: call it as "
                "localhost, or start it with --api-keys or --allow-anyone",
                code="foreign_host",
            )

    async def _read(self, headers: Mapping[str, str], receive: Receive) -> Receive:
        """Reads the body, and gives a `receive` that has it whole."""
        most, length = self._config.max_body_bytes, headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            raise too_large(most)
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGoneError
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large(most)
                    if not message.get("more_body"):
                        break
        except TimeoutError as error:
            raise ApiError(408, "the body did not come in time: send it faster", code="timeout") from error
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return replay


class _ClientGoneError(Exception):
    """Nobody waits for an answer."""


def too_large(most: int) -> ApiError:
    """A body over its limit."""
    return ApiError(413, f"the body is larger than {most} bytes: send less", code="body_too_large")
