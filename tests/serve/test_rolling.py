"""A new adapter while users talk: memories of the old one are served by the old application until they are rebuilt."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from deltamem_agents import DeltaMemEngine
from deltamem_agents.serve import ServeConfig, create_app
from deltamem_agents.serve.ray_proxy import REPLICA, ProxyEdge
from deltamem_agents.serve.service import Service
from tests.builders import randomised
from tests.chat import byte_tokenizer, chat_model

OLD, MOST = "/old", 1000


def application(engine: DeltaMemEngine, name: str, previous: str | None) -> ASGIApp:
    service = Service(ServeConfig(model_id="tiny", max_new_tokens=4, max_body_bytes=MOST, previous=previous), None)
    service.open(engine)
    return named(create_app(service), name)


def named(app: ASGIApp, name: str) -> ASGIApp:
    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_name(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (REPLICA.encode(), name.encode())]  # type: ignore[misc]
            await send(message)

        await app(scope, receive, with_name)  # type: ignore[arg-type]

    return answers


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[dict[str, DeltaMemEngine]]:
    models = {"old": chat_model(), "new": chat_model()}
    randomised(models["new"].adapter, seed=5)
    opened = {
        name: DeltaMemEngine(model, byte_tokenizer(), store=tmp_path / "store.db") for name, model in models.items()
    }
    yield opened
    for engine in opened.values():
        engine.close()


@pytest.fixture
def client(engines: dict[str, DeltaMemEngine]) -> httpx.AsyncClient:
    """Both applications behind one proxy, as Ray has them."""
    old = application(engines["old"], "old", None)
    new = application(engines["new"], "new", OLD)

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        under = scope["path"].startswith(f"{OLD}/")
        await (old if under else new)({**scope, "root_path": OLD if under else ""}, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(ProxyEdge(route)), base_url="http://localhost")


def body(text: str, *, stream: bool = False) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "stream": stream}


async def say(client: httpx.AsyncClient, session: str, *, stream: bool = False) -> str:
    """Makes a turn; who answered."""
    answer = await client.post(
        "/v1/chat/completions", json=body("Hello.", stream=stream), headers={"x-session-id": session}
    )
    assert answer.status_code == 200, answer.text
    assert "error" not in answer.text
    return answer.headers[REPLICA]


async def test_sessions_move_when_they_are_rebuilt(
    client: httpx.AsyncClient, engines: dict[str, DeltaMemEngine]
) -> None:
    for name in ("ann", "b/o b"):
        engines["old"].generate([{"role": "user", "content": "Before."}], session=name, max_new_tokens=4)

    assert [await say(client, name) for name in ("ann", "b/o b", "zoe")] == ["old", "old", "new"]
    assert await say(client, "ann", stream=True) == "old"
    assert (await client.get("/v1/sessions/b%2Fo%20b")).json()["turns"] == 2

    engines["new"].session("ann").rebuild()

    assert [await say(client, name) for name in ("ann", "b/o b", "zoe")] == ["new", "old", "new"]
    assert await say(client, "ann", stream=True) == "new"
    assert engines["new"].info("ann").turns == 5
    assert engines["old"].info("b/o b").turns == 3


async def test_an_export_of_an_old_session_goes_in_through_its_application(
    client: httpx.AsyncClient, engines: dict[str, DeltaMemEngine]
) -> None:
    """Whose path is then below the application's own, and whose body has the limit of imports."""
    engines["old"].generate([{"role": "user", "content": "Before."}], session="ann", max_new_tokens=4)
    exported = await client.get(f"{OLD}/v1/sessions/ann/export")
    assert len(exported.content) > MOST
    imported = await client.post(f"{OLD}/v1/sessions/eve/import", content=exported.content)

    assert imported.status_code == 201, imported.text
    assert engines["old"].info("eve").turns == 1
