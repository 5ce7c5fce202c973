"""Alive, ready, counted; full queues; clients that go away."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from deltamem_agents import DeltaMemEngine
from deltamem_agents.serve import ServeConfig, create_app
from deltamem_agents.serve.logs import JsonLines, PlainLines
from deltamem_agents.serve.service import Service
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for
from tests.serve.conftest import MODEL, Running, Serve, user

LONG = {"model": MODEL, "messages": [user("tell me all")], "max_tokens": 1500, "user": "alice", "stream": True}


def until(done: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def figures(client: httpx.Client) -> dict[str, float]:
    """Every sample by its name and the label that tells it from its like."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            which = "".join(f"{{{value}}}" for name, value in sample.labels.items() if name not in ("model_name", "le"))
            found[sample.name + which] = sample.value
    return found


def test_it_is_alive_at_once_and_ready_when_the_model_is_loaded() -> None:
    loaded = threading.Event()

    def load() -> DeltaMemEngine:
        loaded.wait(30)
        return DeltaMemEngine(model_for(), byte_tokenizer(), store=":memory:")

    service = Service(ServeConfig(model_id=MODEL), None)
    server = uvicorn.Server(uvicorn.Config(create_app(service, load), port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with httpx.Client(base_url=url) as client:
        assert client.get("/health").status_code == 200
        waiting = client.get("/ready")
        assert (waiting.status_code, waiting.json()) == (503, {"status": "loading"})
        early = client.post("/v1/chat/completions", json={**LONG, "stream": False})
        assert early.status_code == 503
        assert early.headers["retry-after"]
        assert early.json()["error"]["code"] == "loading"
        loaded.set()
        until(lambda: client.get("/ready").status_code == 200)
    server.should_exit = True
    thread.join(30)


def test_figures_tell_what_was_done(server: Running) -> None:
    with server.client() as client:
        for _ in range(2):
            client.post("/v1/chat/completions", json={**LONG, "stream": False, "max_tokens": 5})
        found = figures(client)
    assert found["deltamem:generation_tokens_total"] == 10
    assert found["deltamem:prompt_tokens_total"] > 20
    assert found["deltamem:request_success_total{length}"] == 2
    assert found["deltamem:time_to_first_token_seconds_count"] == 2
    assert found["deltamem:e2e_request_latency_seconds_count"] == 2
    assert found["deltamem:store_latency_seconds_count{commit}"] == 2
    assert found["deltamem:http_responses_total{200}"] == 2
    assert found["deltamem:num_requests_running"] == 0
    assert found["deltamem:commit_conflicts_total"] == 0
    assert found["deltamem:sessions"] == 1


def test_only_a_client_that_leaves_counts_as_an_abort(server: Running) -> None:
    short, told = {**LONG, "max_tokens": 3}, {"messages": [user("all")], "options": {"max_new_tokens": 3}}
    with server.client() as client:
        for stream in (False, True):
            for path, body in (
                ("/v1/chat/completions", short),
                ("/v1/responses", {"model": MODEL, "input": "all", "max_output_tokens": 16}),
                ("/v1/turns", told),
            ):
                assert client.post(path, json={**body, "stream": stream}).status_code == 200
        found = figures(client)
        done = {name: number for name, number in found.items() if name.startswith("deltamem:request_success_total")}
        assert sum(done.values()) == 6
        assert done.get("deltamem:request_success_total{abort}", 0) == 0
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json={**LONG, "stream": False}, timeout=httpx.Timeout(20, read=0.05))
        until(lambda: server.service.gate.under_way == 0)
        assert figures(client)["deltamem:request_success_total{abort}"] == 1


def test_a_full_queue_says_when_to_come_again(serve: Serve) -> None:
    server = serve(max_batch=1, max_queue=1)
    with server.client() as client, server.client() as other, server.client() as third:
        with client.stream("POST", "/v1/chat/completions", json=LONG) as first:
            lines = first.iter_lines()
            next(lines)
            waits = threading.Thread(
                target=lambda: other.post("/v1/chat/completions", json={**LONG, "stream": False, "max_tokens": 2})
            )
            waits.start()
            until(lambda: server.service.gate.under_way == 2)
            refused = third.post("/v1/chat/completions", json=LONG)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert third.get("/v1/sessions").status_code == 200  # what needs no model goes on
        waits.join(60)
        until(lambda: server.service.gate.under_way == 0)
        assert third.post("/v1/chat/completions", json={**LONG, "stream": False, "max_tokens": 2}).status_code == 200


def test_a_client_that_leaves_a_stream_leaves_no_trace(server: Running) -> None:
    with server.client() as client:
        with client.stream("POST", "/v1/chat/completions", json=LONG) as answer:
            lines = answer.iter_lines()
            for _ in range(6):
                next(lines)
        until(lambda: server.service.gate.under_way == 0)
        assert server.engine.sessions() == []
        assert figures(client)["deltamem:request_success_total{abort}"] == 1
        turn = client.post("/v1/chat/completions", json={**LONG, "stream": False, "max_tokens": 4}).json()
    alone = server.engine.generate([user("tell me all")], session="bob", max_new_tokens=4)
    assert turn["choices"][0]["message"]["content"] == alone.reply.content
    assert server.engine.info("alice").turns == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/turns"])
def test_a_client_that_stops_waiting_cancels_its_turn(server: Running, path: str) -> None:
    bodies: dict[str, dict[str, object]] = {
        "/v1/chat/completions": {**LONG, "stream": False},
        "/v1/responses": {"model": MODEL, "input": "tell me all", "max_output_tokens": 1500, "conversation": "alice"},
        "/v1/turns": {"messages": [user("all")], "options": {"session": "alice", "max_new_tokens": 1500}},
    }
    with server.client() as client:
        started = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            client.post(path, json=bodies[path], timeout=httpx.Timeout(20, read=0.05))
        until(lambda: server.service.gate.under_way == 0)
        until(lambda: server.engine.figures.running == 0)
        assert time.monotonic() - started < 20
    assert server.engine.sessions() == []


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What the server logs, whatever an earlier test has made of logging."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[method-assign]
    log = logging.getLogger("deltamem_agents.serve")
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield found
    log.removeHandler(handler)
    log.setLevel(before)


def test_ids_and_logs(server: Running, records: list[logging.LogRecord]) -> None:
    with server.client() as client:
        answer = client.post(
            "/v1/chat/completions",
            json={**LONG, "stream": False, "max_tokens": 2, "messages": [user("my secret")]},
            headers={"X-Request-ID": "trace-1"},
        )
        assert answer.headers["x-request-id"] == "trace-1"
        assert len(client.get("/health", headers={"X-Request-ID": "a b\tc"}).headers["x-request-id"]) == 32
        client.get("/v1/sessions/alice%20b/log")
    until(lambda: len(records) >= 3)
    lines = [JsonLines().format(record) for record in records]
    first, _, missing = (json.loads(line) for line in lines[:3])
    assert first["request_id"] == "trace-1"
    assert first["route"] == "/v1/chat/completions"
    assert first["completion_tokens"] == 2
    assert (missing["status"], missing["route"]) == (404, "/v1/sessions/{name}/log")
    assert missing["error"] == "session_not_found"
    assert not any(word in line for line in lines for word in ("secret", "alice"))


def test_plain_lines_hold_the_same_in_one_line_that_nothing_breaks() -> None:
    record = logging.LogRecord("deltamem_agents.serve", logging.WARNING, __file__, 1, "odd", None, None)
    record.fields = {"status": 404, "route": "/v1/sessions/{name}/log", "reason": "two words\nand \x1b[2J"}
    line = PlainLines("http://127.0.0.1:1").format(record)
    assert line.partition(" ")[2] == (
        r'warning odd status=404 route=/v1/sessions/{name}/log reason="two words\nand \u001b[2J"'
    )


def test_the_api_describes_itself(server: Running) -> None:
    with server.client() as client:
        described = client.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/responses", "/v1/sessions/{name}/probe"} <= described["paths"].keys()
    assert described["components"]["schemas"]["ChatRequest"]["examples"]
