"""The page in a browser: what a person does there, with the pointer and with the keyboard."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, Playwright, Route, expect, sync_playwright

from tests.serve.conftest import KEYS, Running, Serve

EVIL = "<script>window.evil = 1</script><img src=x onerror='window.evil = 2'>\"'&"
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Debian's Chromium if it is there, else Playwright's own."""
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    try:
        started = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=sandbox)
    except Error as error:
        pytest.skip(f"no browser: apt-get install chromium, or playwright install chromium ({error.message[:80]})")
    yield started
    started.close()


@contextmanager
def tab(browser: Browser, **options: object) -> Iterator[Page]:
    """A tab of its own. What its scripts and its policy complain of fails the test."""
    context = browser.new_context(**options)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    yield page
    context.close()
    assert [said for said in complaints if "status of 4" not in said] == []


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with tab(browser, viewport={"width": 1440, "height": 900}) as page:
        yield page


def begin(page: Page, server: Running, session: str = "alice") -> None:
    page.goto(server.url)
    page.get_by_label("Name of a new session").fill(session)
    page.get_by_label("Name of a new session").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(session)


def say(page: Page, text: str) -> None:
    page.wait_for_load_state()  # until its script runs, Enter is a line break
    turns = page.locator(".turn").count()
    page.get_by_role("textbox", name="Message").fill(text)
    page.get_by_role("textbox", name="Message").press("Enter")
    expect(page.locator(".turn[data-snapshot]")).to_have_count(turns + 1)


def said(page: Page) -> list[str]:
    return page.locator(".said.user .text").all_text_contents()


def test_tell_reload_ask(page: Page, server: Running) -> None:
    begin(page, server)
    say(page, "My dog is called Rex.")
    expect(page.locator(".trace .tokens").first).to_contain_text("dog")
    expect(page.locator("#list a")).to_have_text(re.compile("alice"))
    page.reload()
    assert said(page) == ["My dog is called Rex."]
    say(page, "What is my dog called?")
    assert said(page) == ["My dog is called Rex.", "What is my dog called?"]
    assert server.engine.info("alice").turns == 2


def test_with_memory_beside_without(page: Page, server: Running) -> None:
    begin(page, server)
    say(page, "My dog is called Rex.")
    page.get_by_text("Beside: without memory").click()
    say(page, "What is my dog called?")
    columns = page.locator(".turn").last.locator(".column")
    expect(columns).to_have_count(2)
    expect(columns.nth(0)).to_contain_text("With memory")
    expect(columns.nth(1)).to_contain_text("Without memory")
    alone = server.engine.generate([{"role": "user", "content": "What is my dog called?"}], max_new_tokens=8)
    expect(columns.nth(1).locator(".text")).to_have_text(alone.reply.content.strip())
    left, right = (columns.nth(number).bounding_box() for number in (0, 1))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    assert server.engine.info("alice").turns == 2


def test_fork_and_roll_back(page: Page, server: Running) -> None:
    begin(page, server)
    for text in ("one", "two"):
        say(page, text)
    first = page.locator(".commit").filter(has_text="turn 1")
    first.get_by_role("button", name="Roll back to here").click()
    expect(page.locator(".turn")).to_have_count(1)
    left = page.locator(".commit.left")
    expect(left).to_have_count(1)
    left.get_by_role("button", name="Go here").click()
    expect(page.locator(".turn")).to_have_count(2)
    first.get_by_text("Fork…").click()
    first.get_by_label("Name of the new session").fill("bob & co")
    first.get_by_role("button", name="Fork").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("bob & co")
    assert said(page) == ["one"]
    assert server.engine.info("alice").turns == 2


def test_forget_one_message(page: Page, server: Running) -> None:
    begin(page, server)
    for text in ("one", "my number is 5551234567"):
        say(page, text)
    second = page.locator(".said.user").filter(has_text="5551234567")
    second.get_by_role("button", name="Forget").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert server.engine.info("alice").messages == 4
    second.get_by_role("button", name="Forget").click()
    page.get_by_label("Also erase it from the log").check()
    page.get_by_role("dialog").get_by_role("button", name="Forget").click()
    expect(second).to_have_count(0)
    assert said(page) == ["one"]
    assert not any("5551234567" in (e.text or "") for turn in server.engine.log("alice") for e in turn.entries)


def test_edit_and_another_reply_are_branches(page: Page, server: Running) -> None:
    begin(page, server)
    for text in ("one", "two"):
        say(page, text)
    page.locator(".turn").last.get_by_role("button", name="Edit").click()
    expect(page.get_by_role("textbox", name="Message")).to_have_value("two")
    page.get_by_role("textbox", name="Message").fill("two, otherwise")
    page.get_by_role("button", name="Send").click()
    ways = page.locator(".turn").last.locator(".ways")
    expect(ways).to_contain_text("2 / 2")
    assert said(page) == ["one", "two, otherwise"]
    page.locator(".turn").last.get_by_role("button", name="Another reply").click()
    expect(ways).to_contain_text("3 / 3")
    ways.get_by_label("The version before").click()
    expect(ways).to_contain_text("2 / 3")
    ways.get_by_label("The version before").click()
    expect(page.locator(".said.user .text").last).to_have_text("two")


def test_a_reply_is_stopped(page: Page, serve: Serve) -> None:
    server = serve(max_new_tokens=1900)
    server.engine.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))  # longer than the browser ever takes
    begin(page, server)
    page.get_by_role("textbox", name="Message").fill("tell me all")
    page.get_by_role("textbox", name="Message").press("Enter")
    expect(page.locator(".coming .column .text")).to_have_text(re.compile("....."))
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_contain_text("Nothing of it was kept")
    expect(page.get_by_role("textbox", name="Message")).to_have_value("tell me all")
    expect(page.locator(".turn")).to_have_count(0)
    assert server.engine.sessions() == []


def test_a_reply_is_stopped_too_late(page: Page, server: Running) -> None:
    def complete_before_it_is_seen(route: Route) -> None:
        route.fetch()
        page.keyboard.press("Escape")

    begin(page, server)
    page.route("**/page/say*", complete_before_it_is_seen)
    page.get_by_role("textbox", name="Message").fill("one")
    page.get_by_role("textbox", name="Message").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("is kept")
    expect(page.locator(".turn[data-snapshot]")).to_have_count(1)
    expect(page.get_by_role("textbox", name="Message")).to_have_value("")
    assert server.engine.info("alice").turns == 1


def test_what_does_it_remember(page: Page, server: Running) -> None:
    begin(page, server)
    say(page, "My dog is called Rex.")
    page.get_by_role("tab", name="Turns").press("ArrowRight")
    expect(page.get_by_role("tab", name="In words")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".texts li")).to_have_count(1)
    page.get_by_label("A question of your own").fill("What is my dog called?")
    page.get_by_label("A question of your own").press("Enter")
    expect(page.locator(".recall dt")).to_have_text("What is my dog called?")
    page.get_by_role("tab", name="Memory").click()
    expect(page.locator(".layers img").first).to_be_visible()
    assert server.engine.info("alice").turns == 1


def test_a_session_goes_out_and_comes_in_again(page: Page, server: Running, tmp_path: Path) -> None:
    begin(page, server)
    say(page, "one")
    page.get_by_role("tab", name="Memory").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Export").click()
    file = tmp_path / "alice.zip"
    download.value.save_as(file)
    page.get_by_role("button", name="Forget the session").click()
    page.get_by_role("dialog").get_by_role("button", name="Forget").click()
    expect(page.locator(".welcome")).to_be_visible()
    assert server.engine.sessions() == []
    page.locator("#import").set_input_files(file)
    expect(page.get_by_label("Its name")).to_have_value("alice")
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("alice")
    assert said(page) == ["one"]


def test_html_in_messages_and_names_is_text(page: Page, server: Running) -> None:
    evil_name = f"{EVIL} 名前"
    begin(page, server, evil_name)
    say(page, EVIL)
    page.locator(".turn").get_by_role("button", name="Forget").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    for name in ("In words", "Memory", "Turns"):
        page.get_by_role("tab", name=name).click()
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
    assert said(page) == [EVIL]
    expect(page.locator("#list b")).to_have_text(evil_name)
    assert page.evaluate("window.evil") is None


def test_sign_in(page: Page, serve: Serve) -> None:
    server = serve(keys=KEYS)
    page.goto(server.url)
    page.get_by_label("API key").fill("wrong-key")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not known")
    page.get_by_label("API key").fill("key-of-alice")
    page.get_by_role("button", name="Sign in").click()
    begin(page, server, "diary")
    say(page, "one")
    assert [info.name for info in server.engine.sessions()] == ["alice:diary"]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    page.goto(f"{server.url}/?session=diary")
    expect(page.get_by_label("API key")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser: Browser, server: Running, scheme: str) -> None:
    with tab(browser, viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:
        begin(page, server)
        say(page, "a-very-long-word-" * 20)
        expect(page.locator(".memory")).to_be_hidden()
        page.get_by_role("button", name="Memory", exact=True).click()
        expect(page.locator(".commit")).to_be_visible()
        expect(page.locator(".chat")).to_be_hidden()
        page.get_by_role("button", name="Sessions").click()
        expect(page.locator("#list a")).to_be_visible()
        for view in ("Sessions", "Chat", "Memory"):
            page.get_by_role("button", name=view, exact=True).click()
            wide = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > 360)"
            assert page.evaluate(f"{wide}.map(e => e.outerHTML.slice(0, 80))") == []


def test_what_the_policy_forbids_does_not_happen(browser: Browser, server: Running) -> None:
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(server.url)
    evil = '<img src=x onerror="window.evil = 1">'
    page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", evil)
    expect(page.locator("#list")).to_contain_text("No sessions yet.")
    assert page.evaluate("window.evil") is None
    assert any("Content Security Policy" in text for text in said)
    page.close()


def test_it_asks_nobody_else_and_can_be_used_by_keyboard(page: Page, server: Running) -> None:
    asked: list[str] = []
    whose: list[str | None] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("request", lambda request: "/page/say" in request.url and whose.append(request.headers.get("x-session-id")))
    begin(page, server)
    say(page, "one")
    page.goto(f"{server.url}/docs")
    assert all(url.startswith((server.url, "data:")) for url in asked)
    assert whose == ["alice"]
    page.goto(f"{server.url}/?session=alice")
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.textContent.trim().slice(0, 20) || document.activeElement.id")
        )
    assert {"Begin", "Edit", "Forget", "Another reply", "Turns", "Fork…", "Send"} <= reached
