"""The bundled model in LlamaIndex: what it was told it answers in a new process, and agents keep their loop."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent

from deltamem_agents import DeltaMemEngine, bundled_is_cached
from llama_index_deltamem import DeltaMemLLM, DeltaMemory
from tests.llama_index.runners import look_up, tell_time
from tests.llama_index.steering import ReActLLM

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model has not been fetched"),
]
ROOT = Path(__file__).parent.parent.parent
TURNS = 20


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[DeltaMemEngine]:
    with DeltaMemEngine.bundled(store=tmp_path / "memory.db") as engine:
        yield engine


def test_a_new_process_answers_from_the_memory(tmp_path: Path) -> None:
    """Six runners, three facts told to each; asked for in another process, with an empty window.

    The memories all hold what was said, and no runner's prompts. Asking, a runner puts its own prompts around the
    question; a simple chat engine has none, so it says what the engine says. What the backbone can say at all in each
    runner shows the full history in its prompt.
    """
    for part in ("tell", "ask"):
        command = [sys.executable, "-m", "tests.llama_index.telling", part, str(tmp_path / "memory.db")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, str]]] = json.loads(done.stdout.splitlines()[-1])
    hits = {
        who: {name: sum(answer["value"] in answer[who] for answer in answers) for name, answers in found.items()}
        for who in ("engine", "runner", "full history")
    }
    for name, answers in found.items():
        print(name, json.dumps(answers, ensure_ascii=False))
    print(f"of 3 each: {hits}")
    assert sum(hits["engine"].values()) >= 6
    assert [answer["runner"] for answer in found["simple"]] == [answer["engine"] for answer in found["simple"]]


async def test_a_function_agent_over_twenty_turns(engine: DeltaMemEngine) -> None:
    """A call of one of two tools in each turn, forced by the agent's own `initial_tool_choice`; window 4."""
    memory = DeltaMemory(engine=engine, session_id="function", window=4)
    agent = FunctionAgent(llm=DeltaMemLLM(engine=engine, max_new_tokens=40), tools=[look_up, tell_time])
    largest = []
    for number in range(TURNS):
        agent.initial_tool_choice = ("look_up", "tell_time")[number % 2]
        result = await agent.run(text_of(number), memory=memory)
        largest.append(tokens(result))
        assert [call.tool_name for call in result.tool_calls] == [agent.initial_tool_choice]
    roles = [message.role.value for message in memory.get_all()]
    assert roles == ["user", "assistant", "tool", "assistant"] * TURNS
    check_flat(largest)


async def test_a_react_agent_over_twenty_turns(engine: DeltaMemEngine) -> None:
    """ReAct agents give their LLM no options: this one holds its replies to the format, and chooses what it calls."""
    memory = DeltaMemory(engine=engine, session_id="react", window=4)
    agent = ReActAgent(llm=ReActLLM(engine=engine), tools=[look_up, tell_time])
    largest = []
    for number in range(TURNS):
        result = await agent.run(text_of(number), memory=memory)
        largest.append(tokens(result))
        assert len(result.tool_calls) == 1
    messages = memory.get_all()
    assert [message.role.value for message in messages] == ["user", "assistant"] * TURNS
    assert all((message.content or "").count("Observation:") == 1 for message in messages[1::2])
    check_flat(largest)


def text_of(number: int) -> str:
    return "My dog is called Rex." if number == 0 else f"Question {number}: which city, or what time is it?"


def tokens(result: Any) -> int:
    return int(result.raw["usage"]["prompt_tokens"])


def check_flat(largest: list[int]) -> None:
    """Prompts stop to grow when the window is full."""
    print(f"prompt tokens a turn: {largest}")
    assert max(largest[TURNS // 2 :]) <= 1.1 * max(largest[: TURNS // 2])
