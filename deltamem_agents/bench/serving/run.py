"""A load from its beginning to its end: the server, the clients, the kills, and what is looked at afterwards."""

import asyncio
import os
import platform
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

from deltamem_agents.bench.serving.clients import Client, Figures, Said
from deltamem_agents.bench.serving.ledger import Ledger, compare_states
from deltamem_agents.bench.serving.process import ServerProcess
from deltamem_agents.bench.serving.report import LoadReport
from deltamem_agents.engine import DeltaMemEngine, Engine
from deltamem_agents.errors import ConfigError
from deltamem_agents.store import Snapshot

EVERY = 1.0
"""Seconds between two looks at the server's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is asked of a server."""

    clients: int = 32
    sessions: int = 64
    seconds: float = 600.0
    """In which the server is up."""
    tokens: int = 24
    """Of a reply, at most."""
    leaving: float = 0.0
    """The share of turns that clients leave at a random moment."""
    kills: int = 0
    """How often the server is killed and started again."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks it."""
        if not 1 <= self.clients <= self.sessions:
            raise ConfigError(
                f"there are {self.clients} clients and {self.sessions} sessions: each client needs a session of its own"
            )
        if not 0 <= self.leaving < 1:
            raise ConfigError(f"leaving is {self.leaving}, expected a share of turns, at least 0 and below 1")


def run_load(
    load: Load,
    *,
    url: str | None = None,
    api_key: str | None = None,
    options: Sequence[str] = (),
    output: Path | None = None,
) -> LoadReport:
    """Puts a load on a server, and looks at every session afterwards.

    Args:
        load: how much.
        url: a server that runs already; its sessions "load …" are used, and left there. None: one is started, on a
            store of its own.
        api_key: what that server asks for.
        options: of `deltamem serve`, for the one that is started.
        output: also write the report there, as .md and .json.

    Raises:
        ConfigError: a server elsewhere cannot be killed.
        StoreError: the server cannot be started or reached.
        OSError: `output` cannot be written.
    """
    if url is not None and load.kills:
        raise ConfigError("a server that runs already is not killed: leave out its URL, or the kills")
    if url is not None:
        DeltaMemEngine.connect(url, api_key=api_key).close()  # says what is wrong, where it cannot be reached
        report = _run(load, url, api_key, None)
    else:
        with tempfile.TemporaryDirectory() as folder:
            server = ServerProcess(Path(folder), options)
            server.start()
            try:
                report = _run(load, server.url, None, server)
            finally:
                server.kill()
    if output is not None:
        report.save(output)
    return report


def _run(load: Load, url: str, api_key: str | None, server: ServerProcess | None) -> LoadReport:
    setup = {
        "machine": f"{os.cpu_count()} cores{_busy()}, {platform.system()}; {torch.get_num_threads()} thread(s)",
        "load": f"{load.clients} clients in {load.sessions} sessions for {load.seconds:.0f} s, replies of at most "
        f"{load.tokens} tokens, {load.leaving:.0%} of turns left, seed {load.seed}",
    }
    figures, memory, down = Figures(), list[tuple[float, float]](), list[float]()
    run = f"load {os.urandom(3).hex()}"
    sessions = [f"{run} {number}" for number in range(load.sessions)]
    started = time.monotonic()
    said = asyncio.run(_clients(load, url, api_key, server, sessions, figures, memory, down))
    seconds = time.monotonic() - started
    setup["load"] += f"; load average at the end{_busy().removeprefix(', load')}"
    with DeltaMemEngine.connect(url, api_key=api_key) as engine:
        setup["model"] = Path(engine.model_name).name
        ledger, held = Ledger(), list[str]()
        for session in sessions:
            spoken = [one for one in said if one.session == session]
            line = _line(engine, session)
            ledger.check(spoken, line)
            held += [session] if line and line[0].start == 0 else []  # of others, texts are pruned
        states = compare_states(engine, held)
    return LoadReport(
        setup=setup,
        seconds=seconds,
        figures=figures,
        ledger=ledger,
        states=states,
        memory=tuple(memory),
        down=tuple(down),
        stopped=None if server is None else server.stop(),
    )


async def _clients(
    load: Load,
    url: str,
    api_key: str | None,
    server: ServerProcess | None,
    sessions: Sequence[str],
    figures: Figures,
    memory: list[tuple[float, float]],
    down: list[float],
) -> list[Said]:
    """Lets all clients talk until time is up."""
    rng = random.Random(load.seed)
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=load.clients)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300, limits=limits) as http:
        model = (await http.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        clients = [
            Client(
                http,
                model=model,
                sessions=sessions[number :: load.clients],
                tokens=load.tokens,
                leaving=load.leaving,
                rng=random.Random(rng.random()),
                figures=figures,
            )
            for number in range(load.clients)
        ]
        started = time.monotonic()
        tasks = [asyncio.create_task(client.talk(lambda: started + load.seconds + sum(down))) for client in clients]
        looking = asyncio.create_task(_look(server, started, memory))
        try:
            if server is not None:
                await _kill(server, load, rng, started, down)
            await asyncio.gather(*tasks)
        finally:
            for task in (*tasks, looking):
                task.cancel()
    return [said for client in clients for said in client.said]


async def _kill(server: ServerProcess, load: Load, rng: random.Random, started: float, down: list[float]) -> None:
    """Kills the server at random moments of the time that it is up, and starts it again."""
    moments = [(number + rng.uniform(0.3, 0.9)) * load.seconds / load.kills for number in range(load.kills)]
    for moment in moments:
        await asyncio.sleep(max(0.0, started + moment + sum(down) - time.monotonic()))
        killed = time.monotonic()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        down.append(time.monotonic() - killed)


async def _look(server: ServerProcess | None, started: float, memory: list[tuple[float, float]]) -> None:
    while server is not None:
        if (resident := server.resident()) is not None:
            memory.append((time.monotonic() - started, resident))
        await asyncio.sleep(EVERY)


def _line(engine: Engine, session: str) -> list[Snapshot]:
    info = engine.store.session(session)
    return [] if info is None or info.head is None else engine.store.line(info.head)


def _busy() -> str:
    return f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
