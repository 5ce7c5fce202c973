"""LlamaIndex's six runners behind one call: say something, in one of four ways."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.llms.llm import LLM
from llama_index.core.memory import BaseMemory
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

Mode: TypeAlias = Literal["sync", "async", "stream", "astream"]
Say: TypeAlias = Callable[[str], Awaitable[str]]
ENGINES = ("simple", "context", "condense")
AGENTS = ("function", "react", "workflow")
RUNS: list[tuple[str, Mode]] = [
    *((name, mode) for name in ENGINES for mode in ("sync", "async", "stream", "astream")),
    *((name, mode) for name in AGENTS for mode in ("async", "astream")),
]


class OneNote(BaseRetriever):
    """Always finds the same note."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text="The weather is fine."), score=1.0)]


def runner(name: str, mode: Mode, llm: LLM, memory: BaseMemory, **options: Any) -> Say:
    """How to talk to a runner with this LLM and memory; `options` are the agent's."""
    return _engine(name, mode, llm, memory) if name in ENGINES else _agent(name, mode, llm, memory, **options)


def _engine(name: str, mode: Mode, llm: LLM, memory: BaseMemory) -> Say:
    engine: BaseChatEngine
    if name == "simple":
        engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
    elif name == "context":
        engine = ContextChatEngine.from_defaults(OneNote(), llm=llm, memory=memory, system_prompt="Be kind.")
    else:
        engine = CondensePlusContextChatEngine.from_defaults(OneNote(), llm=llm, memory=memory)

    async def say(text: str) -> str:
        if mode == "sync":
            return str(engine.chat(text))
        if mode == "async":
            return str(await engine.achat(text))
        if mode == "stream":
            return "".join(engine.stream_chat(text).response_gen)
        response = await engine.astream_chat(text)
        return "".join([delta async for delta in response.async_response_gen()])

    return say


def look_up(city: Literal["Oslo", "Rome"]) -> str:
    """Looks a city up."""
    return f"{city} is a city."


def tell_time(zone: Literal["UTC", "CET"]) -> str:
    """Tells the time."""
    return f"It is noon in {zone}."


def _agent(name: str, mode: Mode, llm: LLM, memory: BaseMemory, **options: Any) -> Say:
    streaming = mode == "astream"
    agent: Any
    if name == "workflow":
        helper = FunctionAgent(name="helper", description="Answers.", llm=llm, streaming=streaming, can_handoff_to=[])
        options = {"name": "greeter", "description": "Greets.", "initial_tool_choice": "handoff", **options}
        roomy = llm.model_copy(update={"max_new_tokens": 150})  # a handoff must fit
        greeter = FunctionAgent(llm=roomy, streaming=streaming, can_handoff_to=["helper"], **options)
        agent = AgentWorkflow(agents=[greeter, helper], root_agent="greeter")
    else:
        kind = FunctionAgent if name == "function" else ReActAgent
        tools = [look_up, tell_time]
        agent = kind(llm=llm, streaming=streaming, **{"tools": tools, **options})

    async def say(text: str) -> str:
        return str(await agent.run(text, memory=memory))

    return say
