"""Memories over HTTP: listed in pages, read, forked, rolled back, asked, moved and forgotten."""

from urllib.parse import quote

import httpx
import pytest

from tests.serve.conftest import KEYS, Running, Serve, user

ODD = ["a/b", "..", ".", "a b", "a?b#c%2Fd", "müller", "名前", "a/log", "a:b", "%2e%2e%2f", "absorb", "x" * 200]


def path(name: str, *rest: str) -> str:
    return "/".join(["/v1/sessions", quote(name, safe="").replace(".", "%2E"), *rest])


def absorb(client: httpx.Client, name: str, text: str, **more: str) -> str:
    answer = client.post(path(name, "absorb"), json={"messages": [user(text)], **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["snapshot"])


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_one_part_of_a_path_whatever_it_holds(server: Running, name: str) -> None:
    with server.client() as client:
        head = absorb(client, name, "hi")
        assert client.get(path(name)).json()["head"] == head
        assert [info.name for info in server.engine.sessions()] == [name]
        assert len(client.get(path(name, "log")).json()["data"]) == 1
        assert client.delete(path(name)).json() == {"name": name, "deleted": True}
        assert client.get(path(name)).status_code == 404
    assert server.engine.sessions() == []


@pytest.mark.parametrize("part", ["%ff", "%0a", "%00", "%20a", "x" * 201])
def test_what_is_no_name_is_refused(server: Running, part: str) -> None:
    with server.client() as client:
        answer = client.get(f"/v1/sessions/{part}")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_session"


@pytest.mark.parametrize(
    ("method", "rest", "body"),
    [
        ("GET", "", None),
        ("GET", "log", None),
        ("GET", "inspect", None),
        ("GET", "export", None),
        ("POST", "rebuild", None),
        ("POST", "rollback", {"turns": 1}),
        ("POST", "fork", {"name": "other"}),
        ("DELETE", "messages/1", None),
        ("DELETE", "", None),
    ],
)
def test_a_session_that_is_not_there_is_to_be_looked_for_by_a_route(
    server: Running, method: str, rest: str, body: dict[str, object] | None
) -> None:
    with server.client() as client:
        answer = client.request(method, path("nobody", *([rest] if rest else [])), json=body)
    assert answer.status_code == 404
    found = answer.json()["error"]["message"]
    assert found == "there is no session 'nobody' in this store: see sessions(), or GET /v1/sessions"


def test_pages_hold_every_session_once(server: Running) -> None:
    names = [f"u{number:03}" for number in range(25)]
    server.engine.absorb([user("hi")], session="u000")
    for name in names[1:]:
        server.engine.fork("u000", name)
    server.engine.fork("u000", "other")
    with server.client() as client:
        found: list[str] = []
        while True:
            after = found[-1] if found else ""
            page = client.get("/v1/sessions", params={"prefix": "u", "limit": 10, "after": after}).json()
            found += [info["name"] for info in page["data"]]
            if not page["has_more"]:
                break
        assert client.get("/v1/sessions", params={"limit": 0}).status_code == 400
    assert found == names


def test_a_session_is_forked_and_rolled_back(server: Running) -> None:
    with server.client() as client:
        first, second = absorb(client, "alice", "one"), absorb(client, "alice", "two")
        assert client.post(path("alice", "fork"), json={"name": "bob", "at": first}).json()["head"] == first
        assert client.post(path("alice", "rollback"), json={"turns": 1}).json() == {"head": first}
        assert client.post(path("alice", "rollback"), json={"to": second}).json() == {"head": second}
        again = client.post(path("alice", "fork"), json={"name": "bob"})
        assert again.status_code == 400
        assert "exists already" in again.json()["error"]["message"]
        nowhere = client.post(path("alice", "rollback"), json={"to": "nowhere"})
        assert nowhere.json()["error"]["exception"] == "SessionError"
        log = client.get(path("alice", "log")).json()["data"]
    assert [commit["id"] for commit in log] == [first, second]
    assert "one" in log[0]["entries"][0]["text"]


def test_a_key_makes_a_retry_harmless(server: Running) -> None:
    with server.client() as client:
        assert absorb(client, "alice", "one", key="k") == absorb(client, "alice", "one", key="k")


def test_a_memory_is_asked_inspected_and_loses_a_message(server: Running) -> None:
    with server.client() as client:
        absorb(client, "alice", "My dog is called Rex.")
        secret = absorb(client, "alice", "My number is 5551234567.")
        asked = client.post(path("alice", "probe"), json={"questions": ["What is my dog called?"]}).json()
        assert asked["session"] == "alice"
        assert asked["data"][0]["question"] == "What is my dog called?"
        view = client.get(path("alice", "inspect"), params={"writes": True}).json()
        assert view["last"]["messages"][0]["written"]
        gone = client.delete(path("alice", "messages", quote(f"{secret}/0", safe="")), params={"purge": True})
        assert gone.status_code == 200, gone.text
        assert "5551234567" not in client.get(path("alice", "log")).text
        assert client.post(path("nobody", "probe"), json={}).status_code == 404
    assert server.engine.info("alice").messages == 1


def test_a_session_moves_to_another_server(serve: Serve) -> None:
    one = serve(keys=KEYS)
    with one.client("key-of-alice") as alice, one.client("key-of-bob-1") as bob:
        absorb(alice, "notes", "hi")
        exported = alice.get(path("notes", "export"))
        assert exported.headers["content-type"] == "application/zip"
        taken = bob.post(path("mine", "import"), content=exported.content)
        assert taken.status_code == 201, taken.text
        assert taken.json()["name"] == "mine"
        assert taken.json()["messages"] == 1
        assert bob.post(path("mine", "import"), content=exported.content).status_code == 400
        bad = bob.post(path("bad", "import"), content=exported.content[:-200])
        assert bad.status_code == 400
        assert bad.json()["error"]["code"] == "bad_file"
        assert "/tmp" not in bad.json()["error"]["message"]
    assert {info.name for info in one.engine.sessions()} == {"alice:notes", "bob:mine"}


def test_a_key_sees_its_own_namespace_only(serve: Serve) -> None:
    server = serve(keys=KEYS)
    with server.client("key-of-alice") as alice, server.client("key-of-bob-1") as bob:
        secret = absorb(alice, "diary", "my secret")
        with server.client("key-of-bob-2") as other_key:
            absorb(other_key, "shared", "hi")
        assert [info["name"] for info in bob.get("/v1/sessions").json()["data"]] == ["shared"]
        for name in ("diary", "alice:diary", "alice%3Adiary", "../alice:diary", "bob:shared", ":diary"):
            assert bob.get(path(name)).status_code == 404, name
            assert bob.get(path(name, "export")).status_code == 404, name
            assert bob.post(path("shared", "fork"), json={"name": name, "at": secret}).status_code == 400, name
        for what in ("", "/state", "/line", "/absorbed?key=k", "/through"):
            assert bob.get(f"/v1/snapshots/{secret}{what}").status_code == 404
            assert alice.get(f"/v1/snapshots/{secret}{what}").status_code == 200
        assert bob.post(path("shared", "find"), json={"ids": [secret]}).json() == {"data": {}}
        refused = bob.post(path("shared", "rollback"), json={"to": secret})
        assert refused.status_code == 400
        assert "bob:" not in refused.text
        turn = {"messages": [user("x"), {"role": "assistant", "content": "y", "snapshot": secret}, user("z")]}
        foreign = bob.post("/v1/turns", json={**turn, "options": {"session": "shared"}})
        assert foreign.json()["error"]["exception"] == "SessionError"
    with server.client() as nobody, server.client("wrong-key") as wrong:
        assert nobody.get("/v1/sessions").status_code == 401
        assert wrong.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert nobody.get("/health").status_code == 200
