"""Whose memory a request is about: headers before fields, the first that is there."""

from urllib.parse import unquote

import pytest

from tests.serve.conftest import MODEL, Running, user

ORDER = [
    ("header", "X-Session-ID"),
    ("header", "X-Session-Affinity"),
    ("header", "X-OpenWebUI-User-Id"),
    ("field", "session_id"),
    ("field", "conversation"),
    ("field", "prompt_cache_key"),
    ("field", "user"),
]


def test_the_first_that_is_there_counts(server: Running) -> None:
    for start in range(len(ORDER)):
        given = {name: (kind, f"from {name}") for kind, name in ORDER[start:]}
        headers = {name: value for name, (kind, value) in given.items() if kind == "header"}
        fields = {name: value for name, (kind, value) in given.items() if kind == "field"}
        body = {"model": MODEL, "messages": [user("hi")], "max_tokens": 1, **fields}
        with server.client() as client:
            answer = client.post("/v1/chat/completions", json=body, headers=headers)
        named = f"from {ORDER[start][1]}"
        assert answer.json()["metadata"]["session"] == named
        assert answer.headers["x-session-id"] == named
        assert answer.headers["x-snapshot-id"] == server.engine.info(named).head


def test_open_webuis_chats_are_threads_of_its_users_session(server: Running) -> None:
    body = {"model": MODEL, "messages": [user("hi")], "max_tokens": 1}
    with server.client() as client:
        for chat in ("c1", "c2"):
            headers = {"X-OpenWebUI-User-Id": "u7", "X-OpenWebUI-Chat-Id": chat}
            client.post("/v1/chat/completions", json=body, headers=headers)
    assert [turn.thread for turn in server.engine.log("u7")] == ["c1", "c2"]
    assert server.engine.info("u7").turns == 2


def test_none_is_the_frozen_model_and_an_empty_one_a_mistake(server: Running) -> None:
    body = {"model": MODEL, "messages": [user("hi")], "max_tokens": 1}
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.json()["metadata"] == {}
        assert "x-session-id" not in answer.headers
        for extra, headers in (({"user": ""}, {}), ({}, {"X-Session-ID": ""})):
            refused = client.post("/v1/chat/completions", json={**body, **extra}, headers=headers)
            assert refused.status_code == 400
            assert "is empty" in refused.json()["error"]["message"]
    assert server.engine.sessions() == []


@pytest.mark.parametrize("name", ["müller", "名前", "100% sure", 'a "quoted" one'])
def test_names_outside_ascii_come_back(server: Running, name: str) -> None:
    body = {"model": MODEL, "messages": [user("hi")], "max_tokens": 1}
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=body, headers={b"x-session-id": name.encode()})
    assert answer.json()["metadata"]["session"] == name
    assert unquote(answer.headers["x-session-id"]) == name


def test_memory_modes(server: Running) -> None:
    body = {"model": MODEL, "messages": [user("hi")], "max_tokens": 4, "user": "alice"}
    with server.client() as client:
        for mode in ("read", "off"):
            answer = client.post("/v1/chat/completions", json={**body, "memory": mode})
            assert "snapshot" not in answer.json()["metadata"]
        assert server.engine.sessions() == []
        refused = client.post("/v1/chat/completions", json={**body, "memory": "write"})
    assert refused.json()["error"]["param"] == "memory"
