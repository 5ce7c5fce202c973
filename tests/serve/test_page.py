"""The page over HTTP: what it shows, what it changes, who may, and what it makes of texts that look like HTML."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from deltamem_agents.engine.interface import QUESTIONS
from deltamem_agents.serve import ServeConfig, create_app
from deltamem_agents.serve.keys import Keys
from deltamem_agents.serve.page.sign_in import COOKIE
from deltamem_agents.serve.service import Service
from tests.serve.conftest import KEYS, MODEL, Running, Serve, user

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
HTML = {"accept": "text/html"}


@pytest.fixture
def browser(server: Running) -> Iterator[httpx.Client]:
    """A client that says what a browser says of requests that come from the page."""
    with server.client(origin=server.url) as client:
        yield client


@contextmanager
def signed_in(server: Running, key: str) -> Iterator[httpx.Client]:
    with server.client(origin=server.url) as client:
        assert client.post("/sign-in", data={"key": key}).headers["location"] == "/"
        yield client


def say(client: httpx.Client, session: str, text: str, path: str = "say", **fields: str) -> list[dict[str, object]]:
    answer = client.post(f"/page/{path}", params={"session": session}, data={"text": text, **fields})
    assert answer.status_code == 200, answer.text
    return [json.loads(line[len("data: ") :]) for line in answer.text.split("\n\n") if line]


def shown(client: httpx.Client, part: str, session: str, **more: str) -> str:
    answer = client.get(f"/page/{part}", params={"session": session, **more})
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_message_is_answered_and_kept(browser: httpx.Client, server: Running) -> None:
    events = say(browser, "alice", "My dog is called Rex.")
    assert "done" in events[-1]
    text = "".join(str(event.get("text", "")) for event in events)
    log = server.engine.log("alice")
    assert len(log) == 1
    reply = json.loads(log[0].entries[-1].text or "")["content"]
    assert reply in text
    page = browser.get("/", params={"session": "alice"}).text
    assert "My dog is called Rex." in page
    assert 'href="/?session=alice" aria-current="page"' in browser.get("/page/list", params={"at": "alice"}).text


def test_a_reply_without_memory_keeps_nothing(browser: httpx.Client, server: Running) -> None:
    say(browser, "alice", "My dog is called Rex.")
    without = say(browser, "alice", "Who?", path="without")
    alone = server.engine.generate([user("Who?")], max_new_tokens=8)
    assert "".join(str(event.get("text", "")) for event in without) == alone.reply.content
    assert server.engine.info("alice").turns == 1


def test_an_edited_message_is_a_branch_and_branches_can_be_gone_between(browser: httpx.Client, server: Running) -> None:
    for text in ("one", "two", "three"):
        say(browser, "alice", text)
    first, second, third = server.engine.log("alice")
    say(browser, "alice", "two, otherwise", path="again", message=f"{second.id}/0")
    other = server.engine.log("alice")[-1]
    assert (other.parent, other.turn) == (first.id, 2)
    thread = shown(browser, "thread", "alice")
    assert "two, otherwise" in thread
    assert "three" not in thread
    assert re.search(r"<span>2 / 2</span>", thread)
    assert third.id in thread  # the way back leads to the end of the other branch
    assert browser.post("/page/rollback", params={"session": "alice"}, data={"to": third.id}).status_code == 204
    assert "three" in shown(browser, "thread", "alice")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_another_reply_to_any_message(browser: httpx.Client, server: Running, number: int) -> None:
    for text in ("one", "two", "three"):
        say(browser, "alice", text)
    turn = server.engine.log("alice")[number]
    answer = browser.post("/page/again", params={"session": "alice"}, data={"message": f"{turn.id}/0"})
    assert '"done"' in answer.text, answer.text
    made = server.engine.log("alice")[-1]
    assert (made.parent, made.turn) == (turn.parent, turn.turn)
    assert made.entries[0].digest == turn.entries[0].digest
    assert server.engine.info("alice").head == made.id


def test_messages_of_other_clients_can_be_said_again_where_a_reply_marks_their_place(
    browser: httpx.Client, server: Running
) -> None:
    server.engine.generate([user("one")], session="alice", max_new_tokens=4)
    server.engine.generate([user("two")], session="alice", max_new_tokens=4)
    first, second = server.engine.log("alice")
    thread = shown(browser, "thread", "alice")
    assert f'data-edit="{second.id}/0"' in thread
    assert f'data-edit="{first.id}/0"' not in thread
    say(browser, "alice", "two, otherwise", path="again", message=f"{second.id}/0")
    assert server.engine.log("alice")[-1].parent == first.id
    for handle in (f"{first.id}/0", f"{first.id}/9", f"{first.id}/-1", "nothing/0", "", "/"):
        refused = browser.post("/page/again", params={"session": "alice"}, data={"message": handle, "text": "x"})
        assert refused.status_code == 400, handle
        assert refused.json()["error"]["code"] == "invalid_session"


def test_a_turn_is_forked_rolled_back_and_forgotten(browser: httpx.Client, server: Running) -> None:
    say(browser, "alice", "one")
    say(browser, "alice", "my number is 5551234567")
    first, second = server.engine.log("alice")
    at = {"session": "alice"}
    forked = browser.post("/page/fork", params=at, data={"name": "a/b & c", "at": first.id})
    assert forked.headers["hx-redirect"] == "/?session=a%2Fb+%26+c"
    assert server.engine.info("a/b & c").head == first.id
    assert browser.post("/page/rollback", params=at, data={"to": first.id}).headers["hx-trigger"] == "memory-changed"
    assert server.engine.info("alice").head == first.id
    browser.post("/page/rollback", params=at, data={"to": second.id})
    gone = browser.post("/page/forget-message", params=at, data={"message": f"{second.id}/0", "purge": "true"})
    assert gone.status_code == 204, gone.text
    assert "5551234567" not in shown(browser, "line", "alice") + shown(browser, "remembers", "alice")
    assert browser.post("/page/rollback", params=at).status_code == 204
    assert server.engine.info("alice").head is None
    assert browser.post("/page/forget", params=at).headers["hx-redirect"] == "/"
    assert [info.name for info in server.engine.sessions()] == ["a/b & c"]


def test_what_a_turn_wrote_and_what_the_memory_says(browser: httpx.Client, server: Running) -> None:
    say(browser, "alice", "My dog is called Rex.")
    head = server.engine.info("alice").head or ""
    writes = shown(browser, "writes", "alice", snapshot=head)
    assert "wrote with strength" in writes
    assert 'class="w10' in writes
    assert browser.get("/page/writes", params={"session": "alice", "snapshot": "none"}).status_code == 400
    asked = browser.post("/page/ask", params={"session": "alice"}, data={"question": "What is my dog called?"})
    assert asked.text.count("<dt>") == 1
    assert "What is my dog called?" in asked.text
    usual = browser.post("/page/ask", params={"session": "alice"})
    assert usual.text.count("<dt>") == len(QUESTIONS)
    assert server.engine.info("alice").head == head
    assert "of memory" not in shown(browser, "memory", "alice")
    assert "strength" in shown(browser, "memory", "alice")


def test_a_session_moves_as_a_file(browser: httpx.Client, server: Running) -> None:
    say(browser, "alice", "one")
    exported = browser.get("/page/export", params={"session": "alice"})
    assert exported.headers["content-type"] == "application/zip"
    taken = browser.post("/page/import", params={"session": "bob"}, content=exported.content)
    assert taken.json() == {"address": "/?session=bob"}
    assert server.engine.info("bob").head == server.engine.info("alice").head or server.engine.info("bob").turns == 1
    assert (
        browser.post("/page/import", params={"session": "eve"}, content=b"no zip").json()["error"]["code"] == "bad_file"
    )


def test_an_import_may_be_larger_than_other_bodies(serve: Serve) -> None:
    server = serve(max_body_bytes=1000)
    with server.client(origin=server.url) as browser:
        say(browser, "alice", "one")
        exported = browser.get("/page/export", params={"session": "alice"}).content
        assert len(exported) > 1000
        assert browser.post("/page/import", params={"session": "bob"}, content=exported).status_code == 201
        assert browser.post("/page/say", params={"session": "bob"}, data={"text": "x" * 2000}).status_code == 413


def test_sessions_are_listed_in_pages_and_searched(browser: httpx.Client, server: Running) -> None:
    server.engine.absorb([user("hi")], session="u00")
    for number in range(1, 45):
        server.engine.fork("u00", f"u{number:02}")
    server.engine.fork("u00", "other")
    found = []
    after = ""
    while True:
        part = browser.get("/page/list", params={"prefix": "u", "after": after}).text
        names = re.findall(r"<b>(.*?)</b>", part)
        found += names
        if "More" not in part:
            break
        after = names[-1]
    assert found == [f"u{number:02}" for number in range(45)]
    assert "No name begins so" in browser.get("/page/list", params={"prefix": "x"}).text


def test_a_long_conversation_is_shown_from_its_end(browser: httpx.Client, server: Running) -> None:
    for number in range(25):
        server.engine.absorb([user(f"message {number}.")], session="alice")
    end = shown(browser, "thread", "alice")
    assert "message 24." in end
    assert "message 4." not in end
    (before,) = re.findall(r"before=(\d+)", end)
    start = shown(browser, "thread", "alice", before=before)
    assert "message 0." in start
    assert "message 4." in start
    assert "message 5." not in start
    assert "before=" not in start


# --- bad input


def test_every_text_is_escaped(browser: httpx.Client, server: Running) -> None:
    name = f"n {EVIL}"
    say(browser, name, EVIL)
    server.engine.absorb([user(EVIL)], session=name, thread=EVIL)
    head = server.engine.info(name).head or ""
    pages = [browser.get("/", params={"session": name}).text, browser.get("/page/list", params={"at": name}).text]
    pages += [shown(browser, part, name) for part in ("thread", "line", "remembers", "memory")]
    pages.append(shown(browser, "writes", name, snapshot=head))
    pages.append(browser.post("/page/ask", params={"session": name}, data={"question": EVIL}).text)
    pages.append(browser.get("/", params={"session": f" {EVIL}"}, headers=HTML).text)
    pages.append(browser.get("/page/line", params={"session": f" {EVIL}"}, headers={"hx-request": "true"}).text)
    for page in pages:
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "&lt;" in page


def test_the_policy_allows_nothing_from_elsewhere(browser: httpx.Client) -> None:
    say(browser, "alice", "one")
    for path in ("/", "/?session=alice", "/page/thread?session=alice", "/page/static/page.js", "/docs", "/sign-in"):
        policy = browser.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
    pages = [browser.get(path).text for path in ("/", "/?session=alice", "/docs")]
    pages += [shown(browser, part, "alice") for part in ("thread", "line", "remembers", "memory")]
    for page in pages:
        assert "http://" not in page.replace("http://www.w3.org", "")
        assert "https://" not in page
        assert not re.search(r"\s(style|on[a-z]+)=", page)
        assert not re.search(r"<script(?! src=)|<style", page)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
    ],
)
def test_changes_that_another_page_asks_for_are_refused(serve: Serve, headers: dict[str, str]) -> None:
    server = serve(keys=KEYS)
    with signed_in(server, "key-of-alice") as browser:
        say(browser, "diary", "one")
        cookie = f"{COOKIE}={browser.cookies[COOKIE]}"
    with server.client(cookie=cookie, **headers) as foreign:
        for path in ("say", "forget", "rollback", "fork", "import", "ask", "again", "without", "forget-message"):
            answer = foreign.post(f"/page/{path}", params={"session": "diary"}, data={"text": "x"})
            assert answer.status_code == 403, path
        assert foreign.post("/sign-in", data={"key": "key-of-bob-1"}).status_code == 403
    assert server.engine.info("alice:diary").turns == 1


@pytest.mark.parametrize("body", [b"", b"text", b"text=", b"text=%ff", b"text=a&more=b", b"&".join([b"a=b"] * 99)])
def test_forms_that_are_none(browser: httpx.Client, server: Running, body: bytes) -> None:
    answer = browser.post("/page/say", params={"session": "alice"}, content=body)
    assert answer.status_code == 400, answer.text
    assert server.engine.sessions() == []


def test_errors_are_shown_as_their_asker_can(browser: httpx.Client) -> None:
    bad = {"session": " "}
    assert browser.get("/", params=bad, headers=HTML).text.startswith("<!DOCTYPE html>")
    fragment = browser.get("/page/line", params=bad, headers={"hx-request": "true"})
    assert (fragment.status_code, fragment.headers["hx-retarget"]) == (400, "#notice")
    assert browser.get("/page/line", params=bad).json()["error"]["code"] == "invalid_session"
    assert browser.get("/page/line").json()["error"]["code"] == "missing_required_parameter"
    assert browser.get("/page/static/..%2fpanels.py").status_code == 404
    assert browser.get("/nowhere").json()["error"]["code"] == "not_found"


async def test_while_the_model_is_loaded_the_page_says_so_and_comes_again() -> None:
    app = create_app(Service(ServeConfig(model_id=MODEL), None), lambda: pytest.fail("nothing starts the app"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answer = await client.get("/", headers=HTML)
    assert (answer.status_code, answer.headers["refresh"]) == (503, "2")
    assert "being loaded" in answer.text


# --- signing in


def test_with_keys_the_page_is_behind_a_sign_in(serve: Serve) -> None:
    server = serve(keys=KEYS)
    with server.client(origin=server.url) as nobody:
        away = nobody.get("/", headers=HTML)
        assert (away.status_code, away.headers["location"]) == (303, "/sign-in")
        assert nobody.get("/page/list", headers={"hx-request": "true"}).headers["hx-redirect"] == "/sign-in"
        assert nobody.post("/page/say", params={"session": "x"}, data={"text": "x"}).status_code == 401
        wrong = nobody.post("/sign-in", data={"key": "wrong-key"})
        assert wrong.status_code == 401
        assert "not known" in wrong.text
        assert not nobody.cookies
    with signed_in(server, "key-of-alice") as alice, signed_in(server, "key-of-bob-1") as bob:
        (cookie,) = alice.post("/sign-in", data={"key": "key-of-alice"}).headers.get_list("set-cookie")
        assert "key-of-alice" not in cookie
        assert {"httponly", "samesite=strict", "path=/"} <= set(cookie.lower().split("; "))
        say(alice, "diary", "my secret")
        commit = server.engine.info("alice:diary").head or ""
        assert "diary" in alice.get("/page/list").text
        assert "diary" not in bob.get("/page/list").text
        for name in ("diary", "alice:diary", "../alice:diary"):
            thread = bob.get("/page/thread", params={"session": name}).text
            assert "secret" not in thread
            for path in ("export", "writes"):
                got = bob.get(f"/page/{path}", params={"session": name, "snapshot": commit})
                assert got.status_code in (400, 404), (path, got.text)
                assert "bob:" not in got.text
            assert bob.post("/page/again", params={"session": name}, data={"message": f"{commit}/0"}).status_code == 404
            assert bob.post("/page/rollback", params={"session": name}, data={"to": commit}).status_code == 404
            forked = bob.post("/page/fork", params={"session": name}, data={"name": "mine", "at": commit})
            assert forked.status_code == 404
        assert [info.name for info in server.engine.sessions()] == ["alice:diary"]
        assert bob.post("/sign-out").headers["location"] == "/sign-in"
        assert bob.get("/page/list").status_code == 401


def test_a_sign_in_ends_with_its_key_and_with_its_time(serve: Serve) -> None:
    server = serve(keys=KEYS)
    with signed_in(server, "key-of-bob-1") as bob:
        assert bob.get("/page/list").status_code == 200
        server.service.keys = Keys({"key-of-alice": "alice"})
        assert bob.get("/page/list").status_code == 401
    server.service.keys = Keys(KEYS)
    fresh, over = (Keys.ticket("key-of-alice", until=int(time.time()) + seconds) for seconds in (60, -1))
    label, until, seal = fresh.split(".")
    longer = f"{label}.{int(until) + 1}.{seal}"
    others = f"{Keys.ticket('key-of-bob-1', until=1).split('.')[0]}.{until}.{seal}"
    for ticket, status in [(fresh, 200)] + [(t, 401) for t in (over, longer, others, label, "", "..", "a.b.c.d")]:
        with server.client(cookie=f"{COOKIE}={ticket}") as client:
            assert client.get("/page/list").status_code == status, ticket


def test_a_cookie_opens_the_page_only(serve: Serve) -> None:
    server = serve(keys=KEYS)
    with signed_in(server, "key-of-alice") as alice:
        assert alice.get("/v1/sessions").status_code == 401


# --- the page's own files


def test_what_the_page_needs_is_in_the_package(browser: httpx.Client) -> None:
    home = browser.get("/", params={"session": "alice"}).text
    files = set(re.findall(r'(?:src|href)="(/page/static/[^"]+)"', home))
    assert {Path(file).name for file in files} == {"htmx.min.js", "page.js", "page.css", "mark.svg"}
    for file in files:
        got = browser.get(file)
        assert got.status_code == 200
        assert browser.get(file, headers={"if-none-match": got.headers["etag"]}).status_code == 304


def test_the_documentation_needs_nothing_from_elsewhere(browser: httpx.Client) -> None:
    docs = browser.get("/docs").text
    assert "/v1/sessions/{name}/probe" in docs
    assert "ChatRequest" in docs
    assert "<code>session_id</code>" in docs
    assert "<script" not in docs
    assert "/page/say" not in docs
    assert browser.get("/redoc").status_code == 404
