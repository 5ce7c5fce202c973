"""Running a server: its socket, its signals, and how it stops."""

import asyncio
import errno
import ipaddress
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.serve.app import create_app
from deltamem_agents.serve.config import ServeConfig
from deltamem_agents.serve.keys import Keys
from deltamem_agents.serve.logs import log, log_to_stderr
from deltamem_agents.serve.patience import headers_within
from deltamem_agents.serve.service import Service

LAST_SECONDS = 2
"""How long connections have to end by themselves once nothing is under way."""


def serve(
    load: Callable[[Service], DeltaMemEngine],
    config: ServeConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    api_keys: Path | None = None,
    allow_anyone: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT: then it is not ready any more, finishes what runs, and returns.

    SIGHUP reads the file of keys again.

    Args:
        load: gives the engine.
        config: names and limits.
        host: the address to listen at.
        port: the port; 0 takes a free one, which the log tells.
        api_keys: a file of keys and namespaces; None: nobody is asked.
        allow_anyone: listen to other machines without keys.

    Raises:
        ConfigError: other machines would be let in without keys, a bad file of keys, or a port that is taken.
        DeltaMemError: the engine cannot be loaded.
    """
    local = _is_local(host)
    if api_keys is None and not local and not allow_anyone:
        raise ConfigError(
            f"{host} is open to other machines, and no keys are asked for: whoever reaches it can read every memory; "
            "give --api-keys FILE, listen at 127.0.0.1, or say --allow-anyone"
        )
    config = config.model_copy(update={"local_only": local and api_keys is None})
    service = Service(config, None if api_keys is None else Keys.read(api_keys))
    with _bound(host, port) as bound:
        url = f"http://{_in_url(host)}:{bound.getsockname()[1]}"
        log_to_stderr(url=url)
        log.info("listening", extra={"fields": {"url": url}})
        server = _Server(service, load)
        if api_keys is not None and hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, lambda *_: _read_again(service, api_keys))
        server.run(sockets=[bound])
    if server.failure is not None:
        raise server.failure


class _Server(uvicorn.Server):
    """uvicorn's, which drains before it stops, and exits with 0."""

    def __init__(self, service: Service, load: Callable[[Service], DeltaMemEngine]) -> None:
        self.failure: Exception | None = None
        self._service, self._draining = service, False
        app = create_app(service, lambda: load(service), failed=self._failed)
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                http=headers_within(service.config.body_timeout),
                timeout_graceful_shutdown=LAST_SECONDS,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; another one stops at once."""
        if self._draining:
            self.should_exit = self.force_exit = True
            return
        self._draining = True
        self._loop.call_soon_threadsafe(self._begin_draining)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves on this event loop."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def _begin_draining(self) -> None:
        self._drain_task = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        timeout = self._service.config.drain_timeout
        log.info("draining", extra={"fields": {"under_way": self._service.gate.under_way, "timeout": timeout}})
        if not await self._service.gate.drain(timeout):
            log.warning("cancelling", extra={"fields": {"under_way": self._service.gate.under_way}})
            self.config.timeout_graceful_shutdown = 0
        self.should_exit = True

    def _failed(self, error: Exception) -> None:
        self.failure, self.should_exit = error, True


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is taken: stop what uses it, or choose another with --port"
            ) from error
        raise ConfigError(
            f"{host}, port {port} cannot be listened at ({error}): choose another --host or --port"
        ) from error


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _read_again(service: Service, path: Path) -> None:
    """Takes the keys from the file; a bad file changes nothing."""
    try:
        service.keys = Keys.read(path)
        log.info("keys were read again")
    except ConfigError as error:
        log.error("keys were not read again", extra={"fields": {"reason": str(error)}})
