"""Whatever way a conversation has taken, the memory is that of a fresh process that is told what is visible now."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltamem_agents import DeltaMemEngine, MemoryState
from tests.engine.visible import STYLES, Client, Said

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
RECENT = 2
REPLAY = """
import json, sys
from deltamem_agents import DeltaMemEngine

store, turns = sys.argv[1], json.loads(sys.argv[2])
with DeltaMemEngine.bundled(store=store, recent_messages=int(sys.argv[3])) as engine:
    for turn in turns:
        engine.absorb(turn["messages"], session="replay", thread=turn["thread"])
    sys.stdout.buffer.write(engine.state("replay").to_bytes())
"""
Talk = Callable[[Client, Client], list[Said]]


def linear(a: Client, b: Client) -> list[Said]:
    return a.turns


def regenerated(a: Client, b: Client) -> list[Said]:
    a.regenerate()
    a.say([a.message("user", "And what else?")])
    return a.turns


def edited(a: Client, b: Client) -> list[Said]:
    a.edit(1, "My cat is called Tom.")
    a.say([a.message("user", "What did I say?")])
    return a.turns


def rolled_back(a: Client, b: Client) -> list[Said]:
    a.engine.session(a.session).rollback(turns=2)
    del a.turns[-2:]
    a.say([a.message("user", "Where do I live?")])
    return a.turns


def forked(a: Client, b: Client) -> list[Said]:
    a.engine.session(a.session).fork("branch", at=a.turns[1].reply.snapshot)
    a.say([a.message("user", "This is not for the branch.")])
    a.session = "branch"
    del a.turns[2:]
    a.say([a.message("user", "Only the branch knows this.")])
    return a.turns


def interleaved(a: Client, b: Client) -> list[Said]:
    said = list(a.turns)
    for client, text in ((b, "I also play chess."), (a, "What was that?"), (b, "Twice a week."), (a, "Tell me.")):
        said.append(client.say([client.message("user", text)]))
    return said


def fresh_process(turns: list[Said], folder: Path) -> MemoryState:
    told = []
    for turn in turns:
        messages = [m.model_dump(include={"role", "content"}) for m in (*turn.new, turn.reply)]
        told.append({"messages": messages, "thread": turn.thread or "main"})
    command = [sys.executable, "-c", REPLAY, str(folder / "fresh.db"), json.dumps(told), str(RECENT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return MemoryState.from_bytes(done.stdout)


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("talk", [linear, regenerated, edited, rolled_back, forked, interleaved])
def test_the_state_is_that_of_a_fresh_process_told_the_visible_line(talk: Talk, cold: bool, tmp_path: Path) -> None:
    store, budget = tmp_path / "store.db", 0 if cold else 2**30
    with DeltaMemEngine.from_pretrained("bundled", store=store, recent_messages=RECENT, cache_bytes=budget) as engine:
        a = Client(engine, STYLES["full"], ids=True)
        b = Client(engine, STYLES["full"], ids=True, thread="other")
        for text in ("My name is Nora.", "I live in Lisbon.", "My dog is called Biscuit."):
            a.say([a.message("user", text)])
        turns = talk(a, b)
        state = engine.state(a.session)
    expected = fresh_process(turns, tmp_path)
    difference = torch.linalg.vector_norm(state.tensor - expected.tensor)
    assert difference <= 1e-3 * torch.linalg.vector_norm(expected.tensor)
