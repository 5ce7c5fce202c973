"""A run's context as JSON, and on in a new process: beside LlamaIndex's own memories, with the same script."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.workflow import Context

from deltamem_agents import DeltaMemEngine
from llama_index_deltamem import DeltaMemLLM, DeltaMemory
from tests.llama_index.lines import Said

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def processes(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes, one after the other, find in their memories."""
    folder = tmp_path_factory.mktemp("contexts")

    def run(*texts: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.llama_index.continuing", str(folder), *map(str, folders), *texts]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))

    return [run("one", "two"), run("three")]


def test_it_goes_on_from_the_same_snapshot(processes: list[dict[str, Any]]) -> None:
    first, second = processes
    memory = second["DeltaMemory"]
    assert memory["kind"] == "DeltaMemory"
    assert second["goes on"]
    assert memory["said"][:4] == first["DeltaMemory"]["said"]
    assert [text for role, text in memory["said"] if role == "user"] == ["one", "two", "three"]


@pytest.mark.parametrize("kind", ["Memory", "ChatMemoryBuffer"])
def test_llama_index_s_own_do_not(processes: list[dict[str, Any]], kind: str) -> None:
    """The same script: they don't serialise (the buffer not under this pydantic), so an empty one takes their place.

    A context is serialised at every run that goes on with it, in the same process, too.
    """
    asked = [[text for role, text in found[kind]["said"] if role == "user"] for found in processes]
    assert asked == [["two"], ["three"]]


async def test_every_run_goes_through_json(llm: DeltaMemLLM, engine: DeltaMemEngine, said: Said) -> None:
    """A context that is stored between all runs, as a web server does."""
    agent = FunctionAgent(llm=llm)
    ctx = Context(agent)
    await agent.run("0", ctx=ctx, memory=DeltaMemory(engine=engine, session_id="alice", window=2))
    for number in range(1, 5):
        ctx = Context.from_dict(agent, json.loads(json.dumps(ctx.to_dict())))
        await agent.run(str(number), ctx=ctx)
    assert [text for role, text in said("alice") if role == "user"] == ["0", "1", "2", "3", "4"]
    assert len(said("alice")) == 10
    memory = await ctx.store.get("memory")
    assert (type(memory), memory.window) == (DeltaMemory, 2)
