"""The application for Ray Serve: its settings, what it asks of Ray, and the edge of its proxies. Nothing is started."""

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltamem_agents.errors import ConfigError
from deltamem_agents.serve.config import PREVIOUS
from deltamem_agents.serve.ray_proxy import REPLICA, ProxyEdge

NO_RAY = "Ray is not installed: pip install 'deltamem-agents[ray]'"
STORE = "postgresql://me@host/memories"


@pytest.fixture
def ray() -> Any:
    pytest.importorskip("ray.serve", reason=NO_RAY, exc_type=ImportError)
    from deltamem_agents.serve import ray as application

    return application


@pytest.fixture
def yaml() -> Any:
    return pytest.importorskip("yaml")


def test_the_shipped_config_is_one_that_serve_takes(ray: Any, yaml: Any) -> None:
    from ray.serve.schema import ServeDeploySchema

    shipped = yaml.safe_load((Path(ray.__file__).parent / "deploy" / "ray.yaml").read_text())
    parsed = ServeDeploySchema.model_validate(shipped)

    [application] = parsed.applications
    assert application.import_path == "deltamem_agents.serve.ray:app"
    ray.RayOptions.parse(application.args)


def test_asks_ray_for_what_the_settings_say(ray: Any) -> None:
    args = {
        "store": STORE,
        "serve": {"max_batch": 4, "drain_timeout": 9},
        "replicas": {"min_replicas": 2, "max_replicas": 6, "num_gpus": 0.5, "max_queued_requests": 7},
        "router": {"num_fallback_replicas": 1},
    }

    config = ray.app(args)._bound_deployment._deployment_config

    assert config.autoscaling_config.min_replicas == 2
    assert config.autoscaling_config.max_replicas == 6
    assert config.autoscaling_config.target_ongoing_requests == 4
    assert config.max_ongoing_requests == 2 * 4 + ray.ROOM
    assert config.max_queued_requests == 7
    assert config.backpressure_config.status_code == 429
    assert config.backpressure_config.retry_after_s == 2
    assert config.graceful_shutdown_timeout_s == 9
    assert config.request_router_config.request_router_class == ray.ROUTER
    assert config.request_router_config.request_router_kwargs == {"num_virtual_nodes": 100, "num_fallback_replicas": 1}
    assert ray.app(args)._bound_deployment.ray_actor_options["num_gpus"] == 0.5


def test_a_fixed_number_of_replicas_needs_no_autoscaling(ray: Any) -> None:
    config = ray.app({"store": STORE, "replicas": {"min_replicas": 3, "max_replicas": 3}})

    assert config._bound_deployment._deployment_config.num_replicas == 3
    assert config._bound_deployment._deployment_config.autoscaling_config is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"router": {"num_virtual_node": 5}}, "router.num_virtual_node: .*known there are num_virtual_nodes"),
        ({"router": {"num_virtual_nodes": 0}}, "router.num_virtual_nodes: .*greater than or equal to 1"),
        ({"replica": {}}, "replica: .*known there are .*replicas"),
        ({"serve": {"max_bach": 5}}, "serve.max_bach: .*known there are .*max_batch"),
        ({"replicas": {"max_ongoing_requests": 32}}, "max_ongoing_requests is 32, expected at least 33"),
        ({"replicas": {"min_replicas": 3}}, "max_replicas is 1, less than min_replicas 3"),
        ({"store": ":memory:"}, "give the URL of a PostgreSQL"),
        ({"serve": {"previous": "old"}}, "serve.previous"),
    ],
)
def test_settings_that_cannot_be_are_named_before_anything_starts(ray: Any, more: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ray.app({"store": STORE, **more})


def test_the_store_has_to_be_named(ray: Any) -> None:
    with pytest.raises(ConfigError, match="store: Field required"):
        ray.app({})


def test_settings_beside_the_applications_are_checked_where_a_replica_starts(ray: Any) -> None:
    options = ray.RayOptions.parse({"store": STORE})
    mine = SimpleNamespace(request_router_class=ray.ROUTER, request_router_kwargs={"num_fallback_replica": 1})
    none = SimpleNamespace(request_router_class=ray.ROUTER, request_router_kwargs={})
    another = SimpleNamespace(request_router_class="mine.Router", request_router_kwargs={"num_fallback_replica": 1})

    with pytest.raises(ConfigError, match=r"num_fallback_replica: .*known there are num_virtual_nodes"):
        ray.check_deployment(SimpleNamespace(max_ongoing_requests=40, request_router_config=mine), options)
    with pytest.raises(ConfigError, match="max_ongoing_requests is 5, expected above twice max_batch"):
        ray.check_deployment(SimpleNamespace(max_ongoing_requests=5, request_router_config=none), options)
    ray.check_deployment(SimpleNamespace(max_ongoing_requests=40, request_router_config=another), options)


def test_the_routers_keywords_are_still_those_that_ray_reads(ray: Any) -> None:
    source = inspect.getsource(ray.ConsistentHashRouter.initialize_state)
    read = {word.split('"')[1] for word in source.split("kwargs.get(")[1:]}
    assert read == set(ray.RouterOptions.model_fields)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "deltamem_agents.serve.ray", raising=False)
    with pytest.raises(
        ConfigError, match=r"Ray Serve 2.57 or later is not installed .*pip install 'deltamem-agents\[ray"
    ):
        importlib.import_module("deltamem_agents.serve.ray")


# --- what Ray's proxies answer


def test_proxies_load_no_model_code() -> None:
    code = "import sys, deltamem_agents.serve.ray_proxy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def in_front_of(app: ASGIApp) -> TestClient:
    return TestClient(ProxyEdge(app), raise_server_exceptions=False)


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    """As Ray's proxy refuses."""
    status = int(scope["path"][1:])
    headers = {"retry-after": "3"} if status == 429 else {}
    await PlainTextResponse("Request dropped", status, headers)(scope, receive, send)


@pytest.mark.parametrize(
    ("status", "code", "kind", "again"),
    [
        (429, "queue_full", "rate_limit_error", "3"),
        (503, "unavailable", "server_error", "5"),
        (404, "not_found", "invalid_request_error", None),
        (500, "internal_error", "server_error", None),
    ],
)
def test_what_ray_refuses_itself_has_openais_shape(status: int, code: str, kind: str, again: str | None) -> None:
    answer = in_front_of(refusing).get(f"/{status}")

    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], error["type"], answer.headers.get("retry-after")) == (code, kind, again)


async def losing(scope: Scope, receive: Receive, send: Send) -> None:
    """As Ray's proxy does when the replica is killed, before an answer or in the middle of a stream."""
    if scope["path"] == "/stream":
        headers = [(b"content-type", b"text/event-stream"), (REPLICA.encode(), b"a")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})


def test_a_lost_replica_is_a_status_that_says_to_come_again() -> None:
    answer = in_front_of(losing).get("/whole")

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "replica_lost"


def test_a_stream_whose_replica_is_lost_ends_with_an_error() -> None:
    answer = in_front_of(losing).get("/stream")

    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[0] == "{}"
    assert json.loads(events[1])["error"]["code"] == "replica_lost"
    assert events[2] == "[DONE]"


async def two_applications(scope: Scope, receive: Receive, send: Send) -> None:
    """A new application, which leaves one user's memory to the old one."""
    request = Request(scope, receive)
    body = await request.body()
    old = scope["path"].startswith("/old/")
    headers = {REPLICA: "old" if old else "new", "x-request-id": "one"}
    if not old and body.startswith(b"of the old one"):
        gone = {**headers, PREVIOUS: "/old"}
        await JSONResponse({"error": "fingerprint_mismatch"}, 409, gone)(scope, receive, send)
        return
    said = [scope["raw_path"].decode(), scope["query_string"].decode(), str(len(body))]
    await StreamingResponse(pieces(said), headers=headers)(scope, receive, send)


async def pieces(said: Sequence[str]) -> Any:
    for piece in said:
        yield f"{piece}\n"


@pytest.mark.parametrize("size", [14, 100_000])
def test_a_memory_of_the_old_adapter_is_served_by_the_old_application(size: int) -> None:
    client = in_front_of(two_applications)
    body = b"of the old one".ljust(size)

    old, new = client.post("/v1/x%2Fy?q=1", content=body), client.post("/v1/x%2Fy?q=1", content=b"of the new one")

    assert (old.status_code, old.headers[REPLICA], old.text.split()) == (
        200,
        "old",
        ["/old/v1/x%2Fy", "q=1", str(size)],
    )
    assert (new.status_code, new.headers[REPLICA], new.text.split()) == (200, "new", ["/v1/x%2Fy", "q=1", "14"])
    assert old.headers.get_list("x-request-id") == ["one"]


def test_a_body_too_large_to_send_twice_is_refused_as_it_was() -> None:
    answer = in_front_of(two_applications).post("/v1/x", content=b"of the old one".ljust(5_000_000))

    assert answer.status_code == 409


async def test_a_session_that_is_no_utf8_is_refused_where_ray_would_break() -> None:
    sent = list[Message]()

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": [(b"x-session-id", b"\xff\xfe")]}
    await ProxyEdge(losing)(scope, receive, send)

    assert sent[0]["status"] == 400
    assert json.loads(sent[1]["body"])["error"]["code"] == "invalid_session"
