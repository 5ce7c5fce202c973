"""One process of three conversations, each with another memory: goes on from contexts in files, and leaves them there.

Usage: continuing.py FOLDER MODEL ADAPTER TEXT…
"""

import asyncio
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer, Memory
from llama_index.core.workflow import Context

from deltamem_agents import DeltaMemEngine
from llama_index_deltamem import DeltaMemLLM, DeltaMemory
from tests.llama_index.lines import spoken

KINDS = ("DeltaMemory", "Memory", "ChatMemoryBuffer")


def begun(kind: str, engine: DeltaMemEngine) -> BaseMemory:
    """A memory of each kind, as a user makes it."""
    if kind == "DeltaMemory":
        return DeltaMemory(engine=engine, session_id="alice", window=4)
    kinds = {"Memory": Memory, "ChatMemoryBuffer": ChatMemoryBuffer}
    return kinds[kind].from_defaults(token_limit=4000)


async def talk(kind: str, engine: DeltaMemEngine, place: Path, texts: list[str]) -> dict[str, Any]:
    """Says all texts; gives what the memory has at the end."""
    agent = FunctionAgent(llm=DeltaMemLLM(engine=engine, max_new_tokens=6))
    given = json.loads(place.read_text()) if place.exists() else None
    ctx = Context(agent) if given is None else Context.from_dict(agent, given)
    for number, text in enumerate(texts):
        begins = given is None and number == 0
        await agent.run(text, ctx=ctx, **({"memory": begun(kind, engine)} if begins else {}))
    memory = await ctx.store.get("memory")
    place.write_text(json.dumps(ctx.to_dict()))
    return {"kind": type(memory).__name__, "said": spoken(await memory.aget_all())}


async def main(folder: Path, model: str, adapter: str, texts: list[str]) -> None:
    with DeltaMemEngine.from_pretrained(model, adapter=adapter, store=folder / "memory.db") as engine:
        head = engine.session("alice").info.head if engine.sessions() else None
        found: dict[str, Any] = {kind: await talk(kind, engine, folder / f"{kind}.json", texts) for kind in KINDS}
        parents = [turn.parent for turn in engine.store.log("alice")]
        print(json.dumps({**found, "goes on": head in parents}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:4], sys.argv[4:]))
