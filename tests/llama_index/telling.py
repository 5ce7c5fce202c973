"""One process on the bundled model: `tell` tells each runner three facts, `ask` asks for them, from the state alone.

Usage: telling.py tell|ask STORE
"""

import asyncio
import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer

from deltamem_agents import DeltaMemEngine
from llama_index_deltamem import DeltaMemory
from tests.llama_index.runners import AGENTS, ENGINES, Mode, runner
from tests.llama_index.steering import HandoffLLM

SUBJECTS = ("My name is {}.", "I live in {}.", "My dog is called {}.")
QUESTIONS = ("What is my name?", "Where do I live?", "What is my dog's name?")
VALUES = {
    "simple": ("Nora", "Lisbon", "Biscuit"),
    "context": ("Oscar", "Warsaw", "Shadow"),
    "condense": ("Clara", "Vienna", "Rocky"),
    "function": ("Hugo", "Dublin", "Luna"),
    "react": ("Marta", "Athens", "Bella"),
    "workflow": ("Felix", "Madrid", "Max"),
}
OPTIONS: dict[str, dict[str, Any]] = {"function": {"tools": []}}
MODES: dict[str, Mode] = {**dict.fromkeys(ENGINES, "sync"), **dict.fromkeys(AGENTS, "async")}


async def tell(engine: DeltaMemEngine) -> None:
    llm = HandoffLLM(engine=engine, max_new_tokens=16)
    for name, values in VALUES.items():
        say = runner(name, MODES[name], llm, memory(engine, name), **OPTIONS.get(name, {}))
        for subject, value in zip(SUBJECTS, values, strict=True):
            await say(subject.format(value))


async def ask(engine: DeltaMemEngine) -> None:
    """Each question on a fork, in a new conversation: by the runner, and by the engine without a runner's prompts.

    The control is the same runner on the frozen model, with what was told in its prompt.
    """
    llm = HandoffLLM(engine=engine, max_new_tokens=16)
    found: dict[str, list[dict[str, str]]] = {}
    for name, values in VALUES.items():
        for number, (question, value) in enumerate(zip(QUESTIONS, values, strict=True)):
            engine.session(name).fork(f"{name} {number}")
            asked = memory(engine, f"{name} {number}")
            asked.reset()
            plain = llm.chat([ChatMessage(content=question)], session_id=name, recent_messages=0).message.content
            options, told = OPTIONS.get(name, {}), full_history(engine, values)
            said = await runner(name, MODES[name], llm, asked, **options)(question)
            shown = await runner(name, MODES[name], llm, told, **options)(question)
            answers = {"value": value, "runner": said, "engine": plain or "", "full history": shown}
            found.setdefault(name, []).append(answers)
    print(json.dumps(found))


def full_history(engine: DeltaMemEngine, values: Sequence[str]) -> ChatMemoryBuffer:
    """What was told, each message acknowledged, in LlamaIndex' own memory; whoever has it names no session."""
    history = ChatMemoryBuffer.from_defaults(token_limit=engine.context // 2, tokenizer_fn=engine.tokenizer.encode)
    for subject, value in zip(SUBJECTS, values, strict=True):
        history.put(ChatMessage(role="user", content=subject.format(value)))
        history.put(ChatMessage(role="assistant", content="Okay."))
    return history


def memory(engine: DeltaMemEngine, session: str) -> DeltaMemory:
    return DeltaMemory(engine=engine, session_id=session, window=4)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with DeltaMemEngine.bundled(store=sys.argv[2]) as engine:
        asyncio.run(tell(engine) if sys.argv[1] == "tell" else ask(engine))
