"""Requests to a server, and the errors that come back."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import BinaryIO, cast
from urllib.parse import quote

import httpx
from pydantic import JsonValue

from deltamem_agents import errors
from deltamem_agents.errors import ConfigError, DeltaMemError, GenerationError, StoreError

BUSY = (429, 503)
PATIENCE = 60.0
"""Seconds for which a server that is busy or being started is asked again."""
Body = Mapping[str, object]


class Connection:
    """A server, as its client reaches it. Safe to use from several threads and event loops.

    Args:
        url: where it is, such as "http://127.0.0.1:8080".
        api_key: what the server asks for, if it does.
        timeout: how many seconds an answer may take to begin, or to go on.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._timeout = httpx.Timeout(timeout, connect=min(timeout, 10.0))
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no URL of a server: expected such as http://127.0.0.1:8080")
        try:
            self._client = httpx.Client(base_url=self.url, headers=self._headers, timeout=self._timeout)
            self._ssl = httpx.create_ssl_context() if self.url.startswith("https") else False
        except (httpx.InvalidURL, ValueError, TypeError) as error:
            raise ConfigError(
                f"{url!r} is no server's URL ({error}): expected such as http://127.0.0.1:8080"
            ) from error

    def close(self) -> None:
        """Lets go of connections."""
        self._client.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._client.is_closed

    def request(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        *,
        params: Mapping[str, str | int | bool] | None = None,
        content: BinaryIO | None = None,
    ) -> httpx.Response:
        """An answer.

        Raises:
            DeltaMemError: what the server says went wrong; StoreError when it cannot be reached.
        """
        self._check_open()
        until = time.monotonic() + PATIENCE
        while True:
            if content is not None:
                content.seek(0)
            with _translated(self.url):
                answer = self._client.request(method, path, json=body, params=params, content=content)
            if (wait := _wait(answer, until)) is None:
                return _checked(answer)
            time.sleep(wait)

    def data(self, method: str, path: str, body: Body | None = None, **params: str | int | bool) -> JsonValue:
        """What an answer holds."""
        return cast("JsonValue", self.request(method, path, body, params=params or None).json())

    async def adata(self, method: str, path: str, body: Body) -> JsonValue:
        """`data` for an event loop."""
        async with self._aclient() as client:
            until = time.monotonic() + PATIENCE
            while True:
                with _translated(self.url):
                    answer = await client.request(method, path, json=body)
                if (wait := _wait(answer, until)) is None:
                    return cast("JsonValue", _checked(answer).json())
                await asyncio.sleep(wait)

    def events(self, path: str, body: Body) -> Generator[dict[str, JsonValue], None, None]:
        """The events of a stream; leaving early closes the connection."""
        self._check_open()
        until = time.monotonic() + PATIENCE
        while True:
            with _translated(self.url), self._client.stream("POST", path, json=body) as answer:
                if answer.is_success:
                    for line in answer.iter_lines():
                        if line.startswith("data: "):
                            yield _event(line)
                    return
                answer.read()
            if (wait := _wait(answer, until)) is None:
                _checked(answer)
                return
            time.sleep(wait)

    async def aevents(self, path: str, body: Body) -> AsyncGenerator[dict[str, JsonValue], None]:
        """`events` for an event loop."""
        async with self._aclient() as client:
            until = time.monotonic() + PATIENCE
            while True:
                with _translated(self.url):
                    async with client.stream("POST", path, json=body) as answer:
                        if answer.is_success:
                            async for line in answer.aiter_lines():
                                if line.startswith("data: "):
                                    yield _event(line)
                            return
                        await answer.aread()
                if (wait := _wait(answer, until)) is None:
                    _checked(answer)
                    return
                await asyncio.sleep(wait)

    @asynccontextmanager
    async def _aclient(self) -> AsyncGenerator[httpx.AsyncClient, None]:
        """A client of its own for each call: those of httpx belong to one event loop."""
        self._check_open()
        verify = self._ssl if self._ssl is not False else True
        async with httpx.AsyncClient(
            base_url=self.url, headers=self._headers, timeout=self._timeout, verify=verify
        ) as client:
            yield client

    def _check_open(self) -> None:
        if self.closed:
            raise StoreError("this connection is closed: connect again")


def part(name: str) -> str:
    """A name as one part of a path, whatever it holds."""
    return quote(name, safe="").replace(".", "%2E")


@contextmanager
def _translated(url: str) -> Generator[None, None, None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise StoreError(
            f"the server at {url} cannot be reached ({type(error).__name__}: {error}): check that it runs, and the URL"
        ) from error


def _wait(answer: httpx.Response, until: float) -> float | None:
    """How long to wait before asking again; None: the answer stands."""
    if answer.status_code not in BUSY:
        return None
    after = answer.headers.get("retry-after", "")
    seconds = float(after) if after.isdecimal() else 1.0
    return seconds if time.monotonic() + seconds < until else None


def _checked(answer: httpx.Response) -> httpx.Response:
    """An answer that is a success.

    Raises:
        DeltaMemError: any other; of the server's kind where it says which.
    """
    if answer.is_success:
        return answer
    try:
        body = answer.json()
    except json.JSONDecodeError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("error"), dict):
        body = {"error": {"message": f"the server answered {answer.status_code}: {answer.text[:200]}"}}
    raise _error(body["error"], status=answer.status_code)


def _error(said: Mapping[str, object], *, status: int = 500) -> DeltaMemError:
    kind = getattr(errors, str(said.get("exception")), None)
    if not (isinstance(kind, type) and issubclass(kind, DeltaMemError)):
        kind = GenerationError if status in BUSY or status >= 500 else ConfigError
    made: DeltaMemError = kind(str(said.get("message")))
    return made


def _event(line: str) -> dict[str, JsonValue]:
    event: dict[str, JsonValue] = json.loads(line.removeprefix("data: "))
    if isinstance(said := event.get("error"), dict):
        raise _error(said)
    return event
