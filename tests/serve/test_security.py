"""What was tried against a server, and what came: the session is as it was, the answer in OpenAI's shape."""

import json
import socket
import sqlite3
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from deltamem_agents.store.tables import sessions
from tests.engine.conftest import Start, model_for
from tests.serve.conftest import KEYS, MODEL, Running, Serve, user

CHAT = {"model": MODEL, "messages": [user("hi")], "max_tokens": 2, "user": "alice"}
CHAT_PATH = "/v1/chat/completions"


def raw(server: Running, data: bytes, *, wait: float = 20) -> bytes:
    """What comes back for bytes that no client library would send."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
            head, _, body = answer.partition(b"\r\n\r\n")
            length = next((int(h[16:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length: ")), None)
            if length is not None and len(body) >= length:
                break
    return answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
        b'{"model": "tiny", "messages": ' + b"[" * 20000 + b"]" * 20000 + b"}",
        b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "seed": 1e400}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_bodies_that_are_no_request(server: Running, body: bytes) -> None:
    with server.client() as client:
        answer = client.post(CHAT_PATH, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text[:300]
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert client.post(CHAT_PATH, json=CHAT).status_code == 200
    assert server.engine.info("alice").turns == 1


def test_a_form_that_a_page_could_send_is_no_request(server: Running) -> None:
    with server.client() as client:
        answer = client.post(CHAT_PATH, content=json.dumps(CHAT), headers={"content-type": "text/plain"})
    assert answer.status_code == 400
    assert server.engine.sessions() == []


def test_bodies_over_the_limit(serve: Serve) -> None:
    server = serve(max_body_bytes=10_000, max_messages=5, max_import_bytes=20_000)
    with server.client() as client:
        declared = client.post(CHAT_PATH, content=b"x" * 10_001)
        chunked = client.post(CHAT_PATH, content=iter([b"x" * 4000] * 5))
        imported = client.post("/v1/sessions/alice/import", content=iter([b"x" * 4000] * 10))
        for answer in (declared, chunked, imported):
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "body_too_large"
        many = client.post(CHAT_PATH, json={**CHAT, "messages": [user("hi")] * 6})
        assert many.json()["error"]["code"] == "too_many_messages"
    unending = raw(server, b"POST /v1/turns HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\n")
    assert unending.startswith(b"HTTP/1.1 413")
    lying = raw(server, b"POST /v1/turns HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n")
    assert lying.startswith(b"HTTP/1.1 400")


def test_a_slow_body_is_given_up(serve: Serve) -> None:
    server = serve(body_timeout=0.3)
    started = time.monotonic()
    answer = raw(server, b"POST /v1/turns HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("begins", "status"),
    [
        (b"", b""),  # as browsers do, in case they need it
        (b"GET /hea", b"HTTP/1.1 408"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: a", b"HTTP/1.1 408"),
    ],
)
def test_slow_headers_are_given_up(serve: Serve, begins: bytes, status: bytes) -> None:
    server = serve(body_timeout=0.5)
    started = time.monotonic()
    answer = raw(server, begins)
    assert answer.startswith(status)
    assert b'"code": "timeout"' in answer or not answer
    assert 0.4 < time.monotonic() - started < 15


def test_clients_that_send_a_byte_now_and_then_hold_nobody_up(serve: Serve) -> None:
    server = serve(body_timeout=0.5)
    host, port = server.url.removeprefix("http://").split(":")
    with ExitStack() as stack, server.client() as client:
        slow = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(50)]
        for number, connection in enumerate(slow):
            connection.setblocking(False)
            answered = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" if number % 2 else b""
            connection.sendall(answered + b"GET /health HTTP/1.1\r\nX-Slow: ")
        assert client.post(CHAT_PATH, json=CHAT).status_code == 200
        end = time.monotonic() + 20
        while slow and time.monotonic() < end:
            time.sleep(0.05)
            slow = [connection for connection in slow if _still_open(connection)]
        assert not slow
        assert client.get("/health").status_code == 200


def _still_open(connection: socket.socket) -> bool:
    """Whether one more byte can be sent, and the end of what comes back isn't there."""
    try:
        connection.sendall(b"a")
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def test_a_client_that_reads_nothing_holds_nobody_up(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({**CHAT, "max_tokens": 400, "stream": True}).encode()
    head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as connection, server.client() as client:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert client.post(CHAT_PATH, json={**CHAT, "user": "bob"}).status_code == 200
        end = time.monotonic() + 60
        while not server.engine.sessions(prefix="alice") and time.monotonic() < end:
            time.sleep(0.05)
    assert server.engine.info("alice").turns == 1


@pytest.mark.parametrize("name", ["messages", "snapshot", "self", "order", "key"])
def test_options_reach_no_other_argument(server: Running, name: str) -> None:
    body = {"messages": [user("hi")], "options": {"session": "alice", name: "0" * 32}}
    with server.client() as client:
        answer = client.post("/v1/turns", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    assert server.engine.sessions() == []


def test_a_body_cut_off_changes_nothing(server: Running) -> None:
    body = json.dumps(CHAT).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:-5])
    time.sleep(0.3)
    assert server.engine.sessions() == []
    with server.client() as client:
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "line",
    [
        b"X-Session-ID: alice\r\n\tbob",  # folded
        b"X-Session-ID: a\x00b",
        b"X-Session-ID: a\x7fb",
        b"X-Session-ID: \xff\xfe",
        b"X-Session-ID: " + b"a" * 201,
        b"X-Request-ID: a\r\nX-Injected: yes",
    ],
)
def test_headers_put_nothing_into_answers(server: Running, line: bytes) -> None:
    body = json.dumps({"model": MODEL, "messages": [user("hi")], "max_tokens": 1}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = raw(server, head + line + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 200")
    assert b"injected" not in answer.lower()
    assert all(info.name.isprintable() for info in server.engine.sessions())


@pytest.mark.parametrize(
    "path",
    [
        "/v1/sessions/../../etc/passwd",
        "/v1/sessions/..%2f..%2fetc%2fpasswd/export",
        "/v1/sessions/%2e%2e/log",
        "/v1//sessions",
        "/V1/sessions/x",
        "/v1/sessions/%2Fetc%2Fpasswd/export",
        "/v1/snapshots/..%2f..%2fstore.db",
        "/docs/../v1/sessions/x",
    ],
)
def test_paths_that_try_to_climb_find_nothing(server: Running, path: str) -> None:
    answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert b"root:" not in answer
    assert b'"error"' in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),  # a name that was made to point here
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:8080", "origin": "http://localhost:8080"}, 200),
        ({"host": "[::1]:8080"}, 200),
    ],
)
def test_pages_of_others_cannot_reach_a_server_without_keys(serve: Serve, headers: dict[str, str], status: int) -> None:
    server = serve(local_only=True)
    with server.client() as client:
        assert client.get("/v1/sessions", headers=headers).status_code == status


@pytest.mark.parametrize(
    "name",
    [
        "alice:diary",
        "../alice:diary",
        "alice%3Adiary",
        "%61lice:diary",
        "bob:../alice:diary",
        "alice\uff1adiary",  # a colon that is none
        "\uff41lice:diary",
        "alice\u0000:diary",
        "alice:diary\u200b",
        "*",
        "' or 1=1 --",
        "%",
    ],
)
def test_no_name_reaches_into_anothers_namespace(serve: Serve, name: str) -> None:
    server = serve(keys=KEYS)
    with server.client("key-of-alice") as alice, server.client("key-of-bob-1") as bob:
        alice.post(CHAT_PATH, json={**CHAT, "user": "diary"})
        before = server.engine.log("alice:diary")
        for field in ("session_id", "user", "conversation", "prompt_cache_key"):
            body = {"model": MODEL, "messages": [user("hi")], "max_tokens": 1, field: name}
            assert bob.post(CHAT_PATH, json=body).status_code in (200, 400)
        for kept in bob.get("/v1/sessions", params={"prefix": name}).json().get("data", []):
            assert kept["name"] == name
    assert server.engine.log("alice:diary") == before
    assert {info.name.partition(":")[0] for info in server.engine.sessions()} <= {"alice", "bob"}
    assert len(server.engine.sessions(prefix="alice:")) == 1


def test_ten_thousand_sessions_are_listed_in_pages(serve: Serve, tmp_path: Path) -> None:
    server = serve(keys=KEYS)
    with server.client("key-of-alice") as alice, server.client("key-of-bob-1") as bob:
        alice.post(CHAT_PATH, json=CHAT)
        with sqlite3.connect(tmp_path / "store.db") as store:
            row = store.execute(f"select head, created_at, updated_at from {sessions.name}").fetchone()
            names = [(f"alice:s{number}", *row) for number in range(10_000)]
            store.executemany(
                f"insert into {sessions.name} (name, head, created_at, updated_at) values (?, ?, ?, ?)", names
            )
        started = time.monotonic()
        page = alice.get("/v1/sessions", params={"limit": 1000}).json()
        assert len(page["data"]) == 1000
        assert page["has_more"]
        assert alice.get("/v1/sessions", params={"limit": 10_001}).status_code == 400
        assert bob.get("/v1/sessions").json()["data"] == []
        assert time.monotonic() - started < 20


def test_another_adapters_session_and_a_store_that_fails(serve: Serve, start: Start) -> None:
    start(model_for(("user",))).absorb([user("hi")], session="old")
    server = serve()
    before = server.engine.info("old")
    with server.client() as client:
        foreign = client.post(CHAT_PATH, json={**CHAT, "user": "old"})
        assert foreign.status_code == 409
        assert foreign.json()["error"]["code"] == "fingerprint_mismatch"
        assert server.engine.info("old") == before
        server.engine.store.close()
        broken = client.post(CHAT_PATH, json=CHAT)
        assert broken.status_code == 503
        assert broken.json()["error"]["code"] == "store_unavailable"
        assert client.get("/metrics").status_code == 200


@pytest.fixture
def start(tmp_path: Path) -> Start:  # type: ignore[misc]
    """An engine on the server's own store."""
    from deltamem_agents import DeltaMemEngine
    from tests.chat import byte_tokenizer

    return lambda model: DeltaMemEngine(model, byte_tokenizer(), store=tmp_path / "store.db")
