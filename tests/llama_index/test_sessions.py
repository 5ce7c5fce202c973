"""Whose memory a call reads: seen by what the model says, which a state changes."""

from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import Memory
from pydantic import BaseModel
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent

from deltamem_agents import DeltaMemEngine
from llama_index_deltamem import DeltaMemLLM, DeltaMemory, DeltaMemoryBlock
from tests.llama_index.lines import user
from tests.llama_index.runners import Mode, runner

TOLD = user("My dog is called Rex, and we have lived in Oslo for seven years now.")
ASKED = [user("What?")]


@pytest.fixture
def told(alice: DeltaMemory) -> DeltaMemory:
    """A memory with something in the state, and nothing in the window."""
    alice.put(TOLD)
    alice.reset()
    return alice


@pytest.fixture
def llm(engine: DeltaMemEngine) -> DeltaMemLLM:
    return DeltaMemLLM(engine=engine, max_new_tokens=24)


@pytest.fixture
def frozen(llm: DeltaMemLLM) -> str:
    return str(llm.chat(ASKED).message.content)


@pytest.fixture
def reading(llm: DeltaMemLLM, told: DeltaMemory, frozen: str) -> str:
    """What is said with the state alone."""
    turn = told.engine.generate(
        [{"role": "user", "content": "What?"}], session="alice", memory="read", recent_messages=0, max_new_tokens=24
    )
    assert turn.reply.content != frozen
    return turn.reply.content


class TestOrder:
    def test_the_call_says(self, llm: DeltaMemLLM, reading: str) -> None:
        alone: dict[str, Any] = {"recent_messages": 0}
        assert llm.chat(ASKED, session_id="alice", **alone).message.content == reading
        assert llm.with_session("bob").chat(ASKED, session_id="alice", **alone).message.content == reading
        elsewhere = llm.chat(ASKED, session_id="nobody").message.content  # an empty memory, which the question enters
        assert llm.with_session("alice").chat(ASKED, session_id="bob").message.content == elsewhere != reading

    def test_the_messages_say(self, llm: DeltaMemLLM, told: DeltaMemory, reading: str) -> None:
        """Before what the LLM is bound to."""
        told.put(user("What?"))
        stamped = llm.chat(told.get()).message.content
        assert llm.with_session("bob").chat(told.get()).message.content == stamped
        told.forget()
        assert llm.chat(ASKED).message.content != stamped

    def test_the_llm_says(self, llm: DeltaMemLLM, reading: str) -> None:
        bound = llm.with_session("alice").model_copy(update={"recent_messages": 0})
        assert bound.chat(ASKED).message.content == reading
        assert llm.session_id is None

    def test_in_the_conversation_that_runs(self, llm: DeltaMemLLM, told: DeltaMemory) -> None:
        """What was said before a reset is not shown to a bound LLM either."""
        told.put(user("Hello again."))
        bound = llm.with_session("alice").chat(ASKED)
        expected = llm.chat([*told.get(), *ASKED])
        assert bound.additional_kwargs["prompt_tokens"] == expected.additional_kwargs["prompt_tokens"]

    def test_a_completion_reads_the_state_alone(self, llm: DeltaMemLLM, reading: str) -> None:
        assert llm.with_session("alice").complete("What?").text == reading

    def test_off(self, llm: DeltaMemLLM, told: DeltaMemory, reading: str, frozen: str) -> None:
        assert llm.chat(ASKED, session_id="alice", memory="off").message.content == frozen
        off = llm.model_copy(update={"memory": "off"})
        assert off.with_session("alice").chat(ASKED).message.content == frozen

    def test_nobody_says(self, llm: DeltaMemLLM, told: DeltaMemory, frozen: str) -> None:
        assert llm.chat(ASKED).message.content == frozen
        assert llm.complete("What?").text == frozen


class TestAnEmptyWindow:
    """Chat engines with a context ask the memory before they put: no message carries the stamp after a reset."""

    @pytest.mark.parametrize("name", ["context", "condense"])
    @pytest.mark.parametrize("mode", ["sync", "async", "stream", "astream"])
    async def test_the_state_is_read(
        self, name: str, mode: Mode, llm: DeltaMemLLM, told: DeltaMemory, engine: DeltaMemEngine, frozen: str
    ) -> None:
        nobody = DeltaMemory(engine=engine, session_id="nobody")
        assert await runner(name, mode, llm, told)("What?") != await runner(name, mode, llm, nobody)("What?")
        assert llm.chat(ASKED).message.content == frozen  # and nothing of it is left behind

    def test_for_that_question_only(self, llm: DeltaMemLLM, told: DeltaMemory, frozen: str) -> None:
        assert told.get(input="Who?") == []
        assert llm.chat(ASKED).message.content == frozen


class Asking(Workflow):
    """A step that calls an LLM, with a memory in its context."""

    def __init__(self, llm: DeltaMemLLM, memory: Any) -> None:
        super().__init__()
        self.llm, self.memory = llm, memory

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("memory", self.memory)
        return StopEvent(result=str((await self.llm.achat(ASKED)).message.content))


class TestSteps:
    async def test_the_run_s_memory(self, llm: DeltaMemLLM, told: DeltaMemory, reading: str, frozen: str) -> None:
        assert await Asking(llm, told).run() == reading
        assert await Asking(llm, None).run() == frozen
        assert await Asking(llm.model_copy(update={"memory": "off"}), told).run() == frozen

    async def test_the_run_s_block(self, llm: DeltaMemLLM, told: DeltaMemory, reading: str, frozen: str) -> None:
        block = DeltaMemoryBlock(engine=told.engine, session_id="alice")
        assert await Asking(llm, Memory.from_defaults(memory_blocks=[block])).run() == reading
        assert await Asking(llm, Memory.from_defaults()).run() == frozen

    async def test_structured_output_of_an_agent(self, llm: DeltaMemLLM, alice: DeltaMemory) -> None:
        class Mood(BaseModel):
            """A mood."""

            good: bool

        roomy = llm.model_copy(update={"max_new_tokens": 60})
        result = await FunctionAgent(llm=roomy, output_cls=Mood).run("hello", memory=alice)
        assert Mood.model_validate(result.structured_response)
        assert [m.role.value for m in alice.get_all()] == ["user", "assistant"]


def test_an_agent_s_prompt_is_what_its_memory_gives(
    llm: DeltaMemLLM, alice: DeltaMemory, engine: DeltaMemEngine
) -> None:
    """The engine shows the window, once, in front of what is new."""
    for number in range(9):
        alice.put(user(f"message number {number}"))
    shown = alice.get()
    plain = [ChatMessage(role=message.role, content=message.content) for message in shown]
    counted = engine.count_tokens([{"role": m.role.value, "content": m.content} for m in plain])
    assert llm.chat(shown).additional_kwargs["prompt_tokens"] == counted
