"""Users who talk to a server until they have been answered, each in a session and a thread of its own."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

REPLICA = "x-replica-id"
AGAIN = (409, 429, 503)
"""Statuses that ask to come again."""
TOKENS = 12
Hook = Callable[["User", str], None]


@dataclass(frozen=True)
class Told:
    """A turn that was acknowledged."""

    snapshot: str
    reply: str
    warm: bool
    """Whether a part of the prompt was in a cache."""
    seconds: float
    """From the first attempt to the end of the last."""


@dataclass
class User:
    """One user's side of a conversation. All users of a test share one `Gate`."""

    url: str
    name: str
    gate: "Gate"
    told: list[Told] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    """What attempts ended in: "200", a status, or "stream" for an error in the middle of one."""
    first: float = 0.0
    """Seconds from the last attempt to its first piece of text."""
    hook: Hook | None = None
    """Called with "send" before an attempt and "text" at its second piece of text."""

    def said(self, number: int) -> dict[str, str]:
        return {"role": "user", "content": f"{self.name} says {number * 7919 % 1000}.", "id": f"{self.name}-{number}"}

    def talk(self, turns: int) -> None:
        """Says its things, one after the other, as far as the gate lets it."""
        with httpx.Client(base_url=self.url, headers={"x-session-id": self.name}, timeout=180) as client:
            while len(self.told) < turns:
                self.gate.wait(len(self.told))
                begun = time.monotonic()
                while (told := self._attempt(client, begun)) is None:
                    time.sleep(0.2)
                self.told.append(told)

    def _attempt(self, client: httpx.Client, begun: float) -> Told | None:
        body = {
            "model": "tiny",
            "messages": [self.said(len(self.told))],
            "max_tokens": TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.hook is not None:
            self.hook(self, "send")
        sent = time.monotonic()
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                self.answers[str(answer.status_code)] += 1
                problem = answer.read().decode()
                assert answer.status_code in AGAIN, problem
                assert json.loads(problem)["error"]["code"], problem
                assert answer.status_code == 409 or "retry-after" in answer.headers
                return None
            return self._read(answer, begun, sent)

    def _read(self, answer: httpx.Response, begun: float, sent: float) -> Told | None:
        reply, snapshot, warm, pieces = "", "", False, 0
        for line in answer.iter_lines():
            data = line.removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                self.answers["stream"] += 1
                assert chunk["error"]["type"] in ("server_error", "invalid_request_error"), chunk
                return None
            for choice in chunk["choices"]:
                reply += choice["delta"].get("content") or ""
                pieces += bool(choice["delta"].get("content"))
            if pieces == 1:
                self.first = time.monotonic() - sent
            if pieces == 2 and self.hook is not None:
                self.hook(self, "text")
            snapshot = chunk.get("metadata", {}).get("snapshot", snapshot)
            if chunk.get("usage"):
                warm = chunk["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        self.answers["200"] += 1
        assert snapshot, "a stream without an end"
        return Told(snapshot, reply, warm, time.monotonic() - begun)


class Gate:
    """How many turns all users may have made by now; they wait there for each other."""

    def __init__(self, turns: int = 0) -> None:
        self._turns, self._changed = turns, threading.Condition()

    def open(self, turns: int) -> None:
        with self._changed:
            self._turns = turns
            self._changed.notify_all()

    def wait(self, turn: int) -> None:
        with self._changed:
            while turn >= self._turns:
                self._changed.wait()


def replica_of(user: User) -> str:
    """Which replica answers a user now."""
    while True:
        answer = httpx.get(f"{user.url}/health", headers={"x-session-id": user.name}, timeout=180)
        if answer.status_code == 200:
            return answer.headers[REPLICA]
        time.sleep(0.1)
