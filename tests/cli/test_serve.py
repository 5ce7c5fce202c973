"""`deltamem serve`: what it refuses, and how it starts, drains and stops as a process of its own."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from deltamem_agents.cli import app
from tests.cli.conftest import Saved

CHAT = {"model": "model", "messages": [{"role": "user", "content": "my secret"}], "user": "alice"}


def refused(saved: Saved, *options: str) -> Result:
    where = ["--model", str(saved.model), "--adapter", str(saved.adapter), "--store", str(saved.store)]
    result = CliRunner().invoke(app, ["serve", *where, *options])
    assert result.exit_code == 1, result.output
    return result


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command takes over logging for its process, which here is the tests'."""
    names = ("deltamem_agents", "uvicorn", "uvicorn.error")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_other_machines_are_let_in_with_keys_only(saved: Saved) -> None:
    assert "give --api-keys FILE" in refused(saved, "--host", "0.0.0.0").stderr


def test_a_port_in_use_says_so(saved: Saved) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is taken: " in refused(saved, "--port", str(port)).stderr


def test_an_address_of_another_machine_says_so(saved: Saved) -> None:
    assert "192.0.2.1, port 0 cannot be listened at (" in refused(
        saved, "--host", "192.0.2.1", "--allow-anyone", "--port", "0"
    ).stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("key-of-alice alice\nshort bob\n", "line 2 is no pair"),
        ("key-of-alice alice extra\n", "line 1 is no pair"),
        ("key-of-alice a:b\n", "line 1 is no pair"),
        ("# nothing\n\n", "holds no keys"),
        ("key-of-alice alice\n\nkey-of-alice bob\n", "line 3 holds a key that an earlier line holds"),
    ],
)
def test_a_bad_file_of_keys_names_the_line_and_no_key(saved: Saved, tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "keys").write_text(text)
    result = refused(saved, "--api-keys", str(tmp_path / "keys"), "--port", "0")
    assert found in result.stderr
    assert "key-of-alice" not in result.stderr


def test_a_model_that_cannot_be_loaded_ends_it(saved: Saved, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--model", str(tmp_path / "none"), "--port", "0"])
    assert result.exit_code == 1
    assert "Error:" in result.stderr


class Process:
    """A server as a process of its own, and what it logs."""

    def __init__(self, saved: Saved, *options: str) -> None:
        where = ["--model", str(saved.model), "--adapter", str(saved.adapter), "--store", str(saved.store)]
        command = [sys.executable, "-m", "deltamem_agents.cli", "serve", *where, "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "80"})
        self.lines: list[dict[str, object]] = []
        self.arrived = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.arrived:
                self.lines.append(json.loads(line) if line.startswith("{") else {"event": line})
                self.arrived.notify_all()

    def event(self, name: str) -> dict[str, object]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: any(line["event"] == name for line in self.lines), 240), self.lines
            return next(line for line in self.lines if line["event"] == name)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("key-of-alice alice\n")
    return path


@pytest.fixture
def process(saved: Saved, keys: Path) -> Iterator[Process]:
    started = Process(saved, "--api-keys", str(keys), "--drain-timeout", "60")
    yield started
    started.process.kill()
    started.process.wait()


def test_it_reads_keys_again_drains_and_exits_with_0(process: Process, keys: Path, saved: Saved) -> None:
    url = str(process.event("listening")["url"])
    process.event("ready")
    with (
        httpx.Client(base_url=url, headers={"authorization": "Bearer key-of-alice"}, timeout=120) as alice,
        httpx.Client(base_url=url, headers={"authorization": "Bearer key-of-bob-1"}) as bob,
    ):
        assert bob.get("/v1/models").status_code == 401
        keys.write_text("key-of-bob-1 bob\nbroken")
        process.process.send_signal(signal.SIGHUP)
        process.event("keys were not read again")
        assert alice.get("/v1/models").status_code == 200
        keys.write_text("key-of-alice alice\nkey-of-bob-1 bob\n")
        process.process.send_signal(signal.SIGHUP)
        process.event("keys were read again")
        assert bob.get("/v1/models").status_code == 200

        body = {**CHAT, "stream": True, "max_tokens": 1200}
        with alice.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.process.send_signal(signal.SIGTERM)
            process.event("draining")
            waiting = bob.get("/ready")
            assert (waiting.status_code, waiting.json()["status"]) == (503, "draining")
            assert bob.post("/v1/chat/completions", json=CHAT).status_code == 503
            assert list(lines)[-2:] == ["data: [DONE]", ""]
    assert process.process.wait(120) == 0
    assert not any("secret" in json.dumps(line) for line in process.lines)
    with saved.engine() as engine:
        assert engine.info("alice:alice").turns == 1


def test_what_does_not_end_in_time_is_cancelled_and_leaves_no_trace(saved: Saved) -> None:
    started = Process(saved, "--drain-timeout", "0")
    try:
        url = str(started.event("listening")["url"])
        started.event("ready")
        body = {**CHAT, "stream": True, "max_tokens": 1800, "temperature": 0}  # greedily it never ends itself
        received: list[str] = []
        with suppress(httpx.HTTPError), httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if not received:
                    started.process.send_signal(signal.SIGTERM)
                received.append(line)
        assert "data: [DONE]" not in received
        assert started.process.wait(120) == 0
    finally:
        started.process.kill()
    with saved.engine() as engine:
        assert engine.sessions() == []


@pytest.mark.skipif(os.name == "nt", reason="there are no such terminals there")
def test_on_a_terminal_it_says_in_plain_lines_how_to_begin(saved: Saved) -> None:
    import pty

    where = ["--model", str(saved.model), "--adapter", str(saved.adapter), "--store", str(saved.store)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "deltamem_agents.cli", "serve", *where, "--port", "0"],
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    late = threading.Timer(240, process.kill)
    late.start()
    seen = b""
    try:
        with suppress(OSError):  # Linux's end of a terminal
            while chunk := os.read(ours, 4096):
                begun = b"OpenAI base URL" in seen
                seen += chunk
                if b"OpenAI base URL" in seen and not begun:
                    process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        late.cancel()
        process.kill()
        process.wait()
        os.close(ours)
    lines = seen.decode().splitlines()
    assert not any("\x1b" in line or line.startswith("{") for line in lines), lines
    (listening,) = (line for line in lines if " info listening url=" in line)
    url = listening.partition("url=")[2]
    ready = next(number for number, line in enumerate(lines) if " info ready " in line)
    assert lines[ready].endswith(f" info ready model=model url={url}")
    assert lines[ready + 1] == f"open {url} in a browser, or use {url}/v1 as an OpenAI base URL"
