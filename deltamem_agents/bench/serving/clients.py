"""Clients that talk to a server in sessions of their own, note what they read, and now and then leave."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import httpx

RECALLED = 8
"""So many messages that it knows of does a client send along, as clients that keep a history do."""
PATIENCE = 900.0
"""Seconds for which a client tries to say what it has begun to say, when time is up."""


@dataclass(slots=True)
class Said:
    """Something that was said in a session, and what its client knows of it."""

    session: str
    text: str
    reply: str | None = None
    """The whole reply; None where the client left before it was there: then the turn may be kept or not."""


@dataclass(slots=True)
class Figures:
    """What all clients together have seen."""

    first: list[float] = field(default_factory=list)
    """Seconds to the first text of a reply."""
    between: list[float] = field(default_factory=list)
    """Seconds between two pieces of text."""
    refused: dict[str, int] = field(default_factory=dict)
    """Answers that were no reply, by their status; "cut" is a connection that broke, "stream" an error within one."""
    left: int = 0
    """How often a client left."""
    tokens: int = 0
    """Pieces of text that came."""

    def refuse(self, status: str) -> None:
        """Counts an answer that was no reply."""
        self.refused[status] = self.refused.get(status, 0) + 1


class Client:
    """One client, who talks in one of its sessions after the other until time is up.

    What is refused or cut it says again, with the same words, until there is a reply: so it never knows less than
    that it was said once.

    Args:
        http: a connection to the server.
        model: what the server calls its model.
        sessions: the client's own.
        tokens: of a reply, at most.
        leaving: the share of turns that it leaves at a random moment.
        rng: what is random.
        figures: where it notes what it sees.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        model: str,
        sessions: Sequence[str],
        tokens: int,
        leaving: float,
        rng: random.Random,
        figures: Figures,
    ) -> None:
        self._http, self._model, self._tokens = http, model, tokens
        self._leaving, self._rng, self._figures = leaving, rng, figures
        self._histories: dict[str, list[dict[str, str]]] = {session: [] for session in sessions}
        self._usual = 2.0  # seconds of a turn, lately
        self.said: list[Said] = []

    async def talk(self, until: Callable[[], float]) -> None:
        """Takes turns until a moment of the monotonic clock, which may be put off, and ends the one under way."""
        while time.monotonic() < until():
            session = self._rng.choice(sorted(self._histories))
            said = Said(session, text_of(session, sum(one.session == session for one in self.said)))
            self.said.append(said)
            if self._rng.random() >= self._leaving:
                await self._insist(said, until() + PATIENCE)
                continue
            try:
                async with asyncio.timeout(self._rng.uniform(0, 1.2 * self._usual)):
                    await self._insist(said, until() + PATIENCE)
            except TimeoutError:
                self._figures.left += 1

    async def _insist(self, said: Said, until: float) -> None:
        while said.reply is None and time.monotonic() < until:
            started = time.monotonic()
            try:
                again = await self._say(said, started)
            except httpx.TransportError:
                self._figures.refuse("cut")
                again = 2.0
            if said.reply is None:
                await asyncio.sleep(again * self._rng.uniform(0.5, 1.5))
            else:
                self._usual += 0.3 * (time.monotonic() - started - self._usual)

    async def _say(self, said: Said, started: float) -> float:
        """Says it once; where it was refused: after how many seconds to say it again."""
        history, asked = self._histories[said.session], {"role": "user", "content": said.text}
        body = {
            "model": self._model,
            "messages": [*history[-RECALLED:], asked],
            "max_tokens": self._tokens,
            "stream": True,
        }
        headers = {"x-session-id": said.session}  # where several replicas answer, they are chosen by it
        async with self._http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            if answer.status_code != 200:
                self._figures.refuse(str(answer.status_code))
                return float(answer.headers.get("retry-after", "1"))
            reply = await self._read(answer, started)
        if reply is not None:
            history += [asked, {"role": "assistant", "content": reply}]
            said.reply = reply
        return 1.0

    async def _read(self, answer: httpx.Response, started: float) -> str | None:
        """A stream's text, if it came to its end."""
        text, last, kept = "", started, False
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                return text if kept else None
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                self._figures.refuse("stream")
                return None
            kept = kept or "snapshot" in event.get("metadata", {})
            if piece := _content(event):
                now = time.monotonic()
                (self._figures.between if text else self._figures.first).append(now - last)
                text, last = text + piece, now
                self._figures.tokens += 1
        self._figures.refuse("cut")
        return None


def text_of(session: str, number: int) -> str:
    """Something that is said once, and nowhere else."""
    secret = sha256(f"{session} {number}".encode()).hexdigest()[:8]
    return f"Note {number} of {session}: the code of my box is {secret}. What did I just say?"


def _content(event: Mapping[str, list[dict[str, dict[str, str | None]]]]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])
