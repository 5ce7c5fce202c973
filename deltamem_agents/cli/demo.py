"""`deltamem demo`: a LangChain agent is told facts, its process ends, a new one answers from the memory state alone."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deltamem_agents.cli.loading import BUNDLED, load_engine
from deltamem_agents.cli.options import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    ModelKwargsOption,
    ModelOption,
    WeightsOption,
)

if TYPE_CHECKING:
    from deltamem_agents.engine import DeltaMemEngine
    from langchain_deltamem import ChatDeltaMem

FACTS = ("My name is Nora.", "I live in Oslo.", "My dog is called Biscuit.")
SMALL_TALK = ("Good morning!", "I slept badly last night.")
SAID = (SMALL_TALK[0], FACTS[0], FACTS[1], SMALL_TALK[1], FACTS[2])
SOMEBODY_ELSE = ("My name is Oscar.", "I live in Warsaw.", "My dog is called Shadow.")
QUESTIONS = ("What is my name?", "Where do I live?", "What is my dog's name?")
LENGTH = 24

console = Console(width=80, highlight=False)


def demo(
    model: ModelOption = BUNDLED,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    model_kwargs: ModelKwargsOption = "{}",
    weights: WeightsOption = "full",
    part: Annotated[str, typer.Option(hidden=True)] = "all",
    store: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Tells an agent three facts, ends the process, and asks for them in a new one."""
    loading = ["--model", model, "--dtype", dtype, "--model-kwargs", model_kwargs, "--weights", weights]
    for option, value in (("--adapter", adapter), ("--device", device)):
        loading += [] if value is None else [option, value]
    if part != "all":
        import langchain_deltamem  # noqa: F401  # says what to install before anything is loaded

        engine = load_engine(
            model, adapter=adapter, store=str(store), device=device, dtype=dtype, model_kwargs=model_kwargs,
            weights=weights,
        )
        with engine:
            (_tell if part == "tell" else _ask)(_model(engine))
    else:
        if model == BUNDLED:
            from deltamem_agents.backbone.bundled import bundled_path

            bundled_path()  # its progress bar belongs here, not into the first process
        with tempfile.TemporaryDirectory() as folder:
            for step in ("tell", "ask"):
                command = [sys.executable, "-m", "deltamem_agents.cli", "demo", "--part", step, *loading, "--store"]
                if failed := subprocess.run([*command, str(Path(folder) / "sessions.db")]).returncode:
                    raise typer.Exit(failed)


def _model(engine: "DeltaMemEngine") -> "ChatDeltaMem":
    from langchain_deltamem import ChatDeltaMem

    return ChatDeltaMem(engine=engine, max_new_tokens=LENGTH)


def _say(model: "ChatDeltaMem", session: str, text: str) -> str:
    """One turn of a LangChain agent that is handed nothing but this message and the name of the session."""
    from langchain.agents import create_agent

    agent = create_agent(model, tools=[])
    config = {"configurable": {"session_id": session}}
    return str(agent.invoke({"messages": [("user", text)]}, config)["messages"][-1].content)  # type: ignore[call-overload]


def _tell(model: "ChatDeltaMem") -> None:
    console.print(f"[bold]Process 1[/] (pid {os.getpid()}): Nora talks to the agent, session \"nora\"")
    for text in SAID:
        console.print(f"  [cyan]Nora[/]   {text}")
        console.print(f"  [green]agent[/]  {_say(model, 'nora', text)}")
    for text in SOMEBODY_ELSE:
        _say(model, "oscar", text)
    console.print("  (Oscar, another user, told three facts about himself in session \"oscar\".)")
    console.print("The process ends.\n")


def _ask(model: "ChatDeltaMem") -> None:
    console.print(f"[bold]Process 2[/] (pid {os.getpid()}): new, an empty history; only the question is in the prompt")
    alone = model.model_copy(update={"recent_messages": 0, "memory": "read"})
    frozen = model.model_copy(update={"memory": "off"})
    table = Table("question", "with Nora's memory", "frozen model, no memory", "with Oscar's memory")
    started = time.monotonic()
    for question in QUESTIONS:
        asked = ((alone, "nora"), (frozen, "nora"), (alone, "oscar"))
        table.add_row(question, *(_say(model, session, question) for model, session in asked))
    seconds = (time.monotonic() - started) / (3 * len(QUESTIONS))
    console.print(table)
    engine = model.get_engine()
    first = [{"role": "user", "content": QUESTIONS[0]}]
    turn = engine.generate(first, session="nora", memory="read", recent_messages=0, max_new_tokens=LENGTH)
    told = engine.store.session("nora")
    assert told is not None
    console.print(
        f"Nora's memory: {told.state_bytes:,} bytes after {told.turns} turns. "
        f"Prompt: {turn.usage.prompt_tokens} tokens, system prompt and question. {seconds:.1f} s an answer."
    )
