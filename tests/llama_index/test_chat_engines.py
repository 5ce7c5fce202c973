"""What core's tests check of chat engines and agents, with our memory and LLM: histories, resets, refining."""

import builtins
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import FunctionTool

from deltamem_agents import DeltaMemEngine
from llama_index_deltamem import DeltaMemLLM, DeltaMemory
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for
from tests.llama_index.lines import Said, assistant, spoken, spoken_in, user
from tests.llama_index.runners import OneNote, tell_time

KINDS = [SimpleChatEngine, ContextChatEngine, CondensePlusContextChatEngine]


class ThreePages(BaseRetriever):
    """Finds more than fits a prompt."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text=f"page {n} " * 150), score=1.0) for n in range(3)]


@pytest.fixture(params=KINDS)
def chat(request: pytest.FixtureRequest, llm: DeltaMemLLM, alice: DeltaMemory) -> Any:
    """Each chat engine."""
    if request.param is SimpleChatEngine:
        return SimpleChatEngine.from_defaults(llm=llm, memory=alice)
    return request.param.from_defaults(OneNote(), llm=llm, memory=alice)


class TestChatEngines:
    def test_a_history_that_is_passed_at_every_turn(self, chat: Any, said: Said) -> None:
        """As stateless servers do; it is what the memory has already."""
        history = [user("one"), assistant("two")]
        for text in ("three", "four"):
            reply = chat.chat(text, chat_history=history)
            history += [user(text), assistant(str(reply))]
        assert said("alice") == spoken(history)

    def test_the_history_is_there_to_see(self, chat: Any, said: Said) -> None:
        chat.chat("one")
        "".join(chat.stream_chat("two").response_gen)
        assert spoken(chat.chat_history) == said("alice")
        assert len(chat.chat_history) == 4

    def test_reset(self, chat: Any, engine: DeltaMemEngine) -> None:
        chat.chat("one")
        before = engine.state("alice").tensor.clone()
        chat.reset()
        assert chat.chat_history == []
        assert engine.state("alice").tensor.equal(before)
        chat.chat("two")
        assert [text for role, text in spoken(chat.chat_history) if role == "user"] == ["two"]
        assert engine.session("alice").info.messages == 4

    def test_repl(self, chat: Any, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
        """It resets before it begins."""
        chat.chat("one")
        typed = iter(["two", "three", "exit"])
        monkeypatch.setattr(builtins, "input", lambda _: next(typed))
        chat.chat_repl()
        assert [text for role, text in said("alice") if role == "user"] == ["one", "two", "three"]
        assert len(chat.chat_history) == 4

    def test_a_question_in_braces(self, chat: Any, said: Said) -> None:
        """LlamaIndex formats histories as templates."""
        for text in ("what is {this}?", "and {query_str}?"):
            chat.chat(text)
        assert [text for role, text in said("alice") if role == "user"] == ["what is {this}?", "and {query_str}?"]


class TestRefining:
    @pytest.fixture
    def small(self) -> Iterator[DeltaMemEngine]:
        Settings.tokenizer = byte_tokenizer().encode
        with DeltaMemEngine(model_for(context=2048), byte_tokenizer(), store=":memory:") as engine:
            yield engine
        Settings.tokenizer = Settings.callback_manager = None  # type: ignore[assignment] # the defaults again

    @pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
    def test_many_calls_are_one_turn(self, kind: Any, small: DeltaMemEngine) -> None:
        events = LlamaDebugHandler(print_trace_on_end=False)
        Settings.callback_manager = CallbackManager([events])  # chat engines give it to their LLM
        llm = DeltaMemLLM(engine=small, max_new_tokens=6)
        memory = DeltaMemory(engine=small, session_id="alice", window=2)
        chat = kind.from_defaults(ThreePages(), llm=llm, memory=memory)
        replies = [str(chat.chat(text)) for text in ("one", "two")]
        calls = len(events.get_event_pairs(CBEventType.LLM))
        assert calls > 4
        assert spoken_in(small, "alice") == [
            ("user", "one"), ("assistant", replies[0]), ("user", "two"), ("assistant", replies[1])
        ]  # fmt: skip


class TestAgents:
    async def test_a_history_is_taken_in_once(self, llm: DeltaMemLLM, alice: DeltaMemory, said: Said) -> None:
        agent = FunctionAgent(llm=llm)
        history = [user("one"), assistant("two")]
        for text in ("three", "four"):
            reply = await agent.run(text, chat_history=history, memory=alice)
            history += [user(text), assistant(str(reply))]
        assert said("alice") == spoken(history)

    async def test_a_history_that_ends_with_the_question(
        self, llm: DeltaMemLLM, alice: DeltaMemory, said: Said
    ) -> None:
        history = [ChatMessage(role="system", content="Be kind."), user("one")]
        reply = await FunctionAgent(llm=llm).run(chat_history=history, memory=alice)
        assert said("alice") == [("system", "Be kind."), ("user", "one"), ("assistant", str(reply))]

    async def test_an_answer_that_a_tool_gives(self, llm: DeltaMemLLM, alice: DeltaMemory, said: Said) -> None:
        tool = FunctionTool.from_defaults(tell_time, return_direct=True)
        roomy = llm.model_copy(update={"max_new_tokens": 100})
        agent = FunctionAgent(llm=roomy, tools=[tool], initial_tool_choice="tell_time")
        reply = await agent.run("when?", memory=alice)
        assert [role for role, _ in said("alice")] == ["user", "assistant", "tool", "assistant"]
        assert said("alice")[-1] == ("assistant", str(reply))
        assert str(await agent.run("and now?", memory=alice)).startswith("It is noon")

    async def test_a_tool_that_fails(self, llm: DeltaMemLLM, alice: DeltaMemory, said: Said) -> None:
        def broken() -> str:
            """Breaks."""
            raise RuntimeError("the wire is cut")

        roomy = llm.model_copy(update={"max_new_tokens": 100})
        agent = FunctionAgent(llm=roomy, tools=[broken], initial_tool_choice="broken")
        await agent.run("go", memory=alice)
        assert [role for role, _ in said("alice")] == ["user", "assistant", "tool", "assistant"]
        assert said("alice")[2] == ("tool", "the wire is cut")

    async def test_a_workflow_of_one(self, llm: DeltaMemLLM, alice: DeltaMemory, said: Said) -> None:
        workflow = AgentWorkflow.from_tools_or_functions([tell_time], llm=llm)
        reply = await workflow.run("hello", memory=alice)
        assert said("alice") == [("user", "hello"), ("assistant", str(reply))]

    async def test_two_users_of_one_agent_one_after_the_other(self, llm: DeltaMemLLM, engine: DeltaMemEngine) -> None:
        agent = FunctionAgent(llm=llm)
        for name in ("alice", "bob", "alice"):
            await agent.run(f"I am {name}.", memory=DeltaMemory(engine=engine, session_id=name))
        for name, count in (("alice", 2), ("bob", 1)):
            asked = [text for role, text in spoken_in(engine, name) if role == "user"]
            assert asked == [f"I am {name}."] * count
