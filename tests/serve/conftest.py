"""A real server in a thread, on a tiny model; clients reach it over TCP."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from openai import OpenAI

from deltamem_agents import DeltaMemEngine
from deltamem_agents.serve import ServeConfig, create_app
from deltamem_agents.serve.keys import Keys
from deltamem_agents.serve.patience import headers_within
from deltamem_agents.serve.service import Service
from deltamem_agents.store import open_store
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for

MODEL = "tiny"
KEYS = {"key-of-alice": "alice", "key-of-bob-1": "bob", "key-of-bob-2": "bob"}


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    url: str
    service: Service
    engine: DeltaMemEngine

    def client(self, key: str | None = None, **headers: str) -> httpx.Client:
        authorization = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers={**authorization, **headers}, timeout=60)

    def openai(self, key: str = "none", **options: object) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)  # type: ignore[arg-type]


Serve = Callable[..., Running]


@contextmanager
def serving(engine: DeltaMemEngine, service: Service) -> Iterator[Running]:
    """Serves an engine from a thread; the server closes it in the end."""
    app = create_app(service, lambda: engine)
    http = headers_within(service.config.body_timeout)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5, http=http))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not (server.started and service.ready):
        time.sleep(0.01)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", service, engine)
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(
            *, keys: dict[str, str] | None = None, engine: dict[str, object] | None = None, **config: object
        ) -> Running:
            service = Service(
                ServeConfig(model_id=MODEL, **{"max_new_tokens": 8, **config}),  # type: ignore[arg-type]
                None if keys is None else Keys(keys),
            )
            store = service.metrics.timed(open_store(tmp_path / "store.db"))
            opened = DeltaMemEngine(model_for(), byte_tokenizer(), store=store, **(engine or {}))  # type: ignore[arg-type]
            return stack.enter_context(serving(opened, service))

        yield start


@pytest.fixture
def server(serve: Serve) -> Running:
    return serve()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
