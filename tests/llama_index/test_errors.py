"""What cannot be served is refused, with what was found and what to do, and changes no session."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ToolCallBlock
from llama_index.core.chat_engine import SimpleChatEngine

from deltamem_agents import (
    ConfigError,
    ContextOverflowError,
    DeltaMemEngine,
    FingerprintError,
    GenerationError,
    MemoryStore,
    MessageError,
    SessionError,
    StoreError,
)
from llama_index_deltamem import DeltaMemLLM, DeltaMemory, DeltaMemoryBlock, EngineNotFoundError, register_engine
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for
from tests.llama_index.lines import Said, assistant, user

PICTURE = ChatMessage(role="user", blocks=[TextBlock(text="What is this?"), ImageBlock(url="https://a.org/b.png")])


@pytest.fixture
def other(engine: DeltaMemEngine) -> Iterator[DeltaMemEngine]:
    """Another engine on the same model, with a store of its own."""
    with DeltaMemEngine(engine.model, byte_tokenizer(), store=":memory:") as other:
        register_engine(other, "other")
        yield other


class TestEngines:
    def test_an_engine_that_this_process_has_not(self, alice: DeltaMemory) -> None:
        stored = {**alice.to_dict(), "engine_id": "elsewhere"}
        memory = DeltaMemory.from_dict(stored)  # it may be registered later
        for use in (memory.get, lambda: memory.put(user("hello")), memory.reset and memory.get_all, memory.forget):
            with pytest.raises(EngineNotFoundError, match=r"no engine 'elsewhere'.*DeltaMemLLM\(engine=…\)"):
                use()
        with pytest.raises(LookupError, match=repr(alice.engine_id)):
            DeltaMemory(engine_id="elsewhere", session_id="alice")

    async def test_in_an_agent(self, alice: DeltaMemory, llm: DeltaMemLLM) -> None:
        """An error, and no empty memory in its place."""
        memory = DeltaMemory.from_dict({**alice.to_dict(), "engine_id": "elsewhere"})
        with pytest.raises(EngineNotFoundError, match="elsewhere"):
            await FunctionAgent(llm=llm).run("hello", memory=memory)

    def test_a_memory_on_no_engine(self) -> None:
        for kind in (DeltaMemory, DeltaMemoryBlock):
            with pytest.raises(ConfigError, match=r"on no engine: give engine=…"):
                kind(session_id="alice")

    def test_two_engines_of_one_name(self, engine: DeltaMemEngine, alice: DeltaMemory) -> None:
        with (
            DeltaMemEngine(engine.model, byte_tokenizer(), store=":memory:") as second,
            pytest.raises(ConfigError, match=r"another engine is registered.*register_engine\(engine, 'a name'\)"),
        ):
            DeltaMemory(engine=second, session_id="alice")

    def test_a_closed_engine_makes_way(self, engine: DeltaMemEngine) -> None:
        first = DeltaMemEngine(engine.model, byte_tokenizer(), store=":memory:")
        assert register_engine(first, "one after the other") == register_engine(first)
        first.close()
        with DeltaMemEngine(engine.model, byte_tokenizer(), store=":memory:") as second:
            name = register_engine(second, "one after the other")
            DeltaMemory(engine_id=name, session_id="alice").put(user("hello"))
            assert len(second.sessions()) == 1

    async def test_a_memory_and_an_llm_on_two_engines(
        self, llm: DeltaMemLLM, other: DeltaMemEngine, engine: DeltaMemEngine
    ) -> None:
        memory = DeltaMemory(engine=other, session_id="alice")
        with pytest.raises(ConfigError, match=rf"'alice' is on engine 'other'.*runs on engine '{llm.engine_id}'"):
            SimpleChatEngine.from_defaults(llm=llm, memory=memory).chat("hello")
        with pytest.raises(ConfigError, match="same engine"):
            await FunctionAgent(llm=llm).run("hello", memory=memory)
        assert engine.sessions() == []

    def test_an_engine_and_what_would_go_unused(self, engine: DeltaMemEngine) -> None:
        with pytest.raises(ConfigError, match="engine is given, so model, store would go unused"):
            DeltaMemLLM(engine=engine, model="bundled", store=":memory:")

    def test_a_closed_engine(self, alice: DeltaMemory, engine: DeltaMemEngine) -> None:
        engine.close()
        with pytest.raises((StoreError, GenerationError), match="closed"):
            alice.put(user("hello"))


class TestSessions:
    def test_a_session_of_another_adapter(self, engine: DeltaMemEngine) -> None:
        store = MemoryStore()
        with DeltaMemEngine(model_for(("user",)), byte_tokenizer(), store=store) as first:
            DeltaMemory(engine=first, engine_id="first", session_id="alice").put(user("hello"))
            with DeltaMemEngine(engine.model, byte_tokenizer(), store=store) as second:
                memory = DeltaMemory(engine=second, engine_id="second", session_id="alice")
                with pytest.raises(FingerprintError, match="rebuild"):
                    memory.put(user("more"))
                with pytest.raises(FingerprintError, match="rebuild"):
                    DeltaMemLLM(engine=second).chat(memory.get())

    def test_stamps_that_disagree(self, engine: DeltaMemEngine, llm: DeltaMemLLM, alice: DeltaMemory) -> None:
        bob = DeltaMemory(engine=engine, session_id="bob")
        alice.put(user("I am Alice."))
        bob.put(user("I am Bob."))
        with pytest.raises(SessionError, match=r"sessions 'alice'.*and 'bob'.*a call reads one memory"):
            llm.chat([*alice.get(), *bob.get()])

    @pytest.mark.parametrize("way", ["put", "set", "put_messages"])
    def test_messages_of_another_session(
        self, engine: DeltaMemEngine, alice: DeltaMemory, said: Said, way: str
    ) -> None:
        bob = DeltaMemory(engine=engine, session_id="bob")
        alice.put(user("I am Alice."))
        given: Any = alice.get()[0] if way == "put" else [user("hello"), *alice.get()]
        with pytest.raises(SessionError, match=r"'alice', and this is session 'bob'.*fork"):
            getattr(bob, way)(given)
        assert said("bob") == []

    @pytest.mark.parametrize("name", ["", " alice", "a\nb", "x" * 201])
    def test_bad_names(self, engine: DeltaMemEngine, llm: DeltaMemLLM, name: str) -> None:
        for use in (
            lambda: DeltaMemory(engine=engine, session_id=name),
            lambda: DeltaMemoryBlock(engine=engine, session_id=name),
            lambda: llm.chat([user("hello")], session_id=name),
        ):
            with pytest.raises(SessionError, match="is not a session name"):
                use()

    def test_no_session(self, llm: DeltaMemLLM) -> None:
        """LlamaIndex makes memories of a class by itself, for nobody."""
        with pytest.raises(SessionError, match=r"pass memory=DeltaMemory"):
            SimpleChatEngine.from_defaults(llm=llm, memory_cls=DeltaMemory)

    @pytest.mark.parametrize("window", [0, -1, 2.5, True])
    def test_a_window_that_is_none(self, engine: DeltaMemEngine, window: Any) -> None:
        with pytest.raises(ConfigError, match=r"window is .* 1 or more"):
            DeltaMemory(engine=engine, session_id="alice", window=window)

    def test_a_store_without_texts(self, engine: DeltaMemEngine) -> None:
        with DeltaMemEngine(engine.model, byte_tokenizer(), store=":memory:", transcript="none") as silent:
            memory = DeltaMemory(engine=silent, engine_id="silent", session_id="alice")
            memory.put(user("hello"))
            with pytest.raises(ConfigError, match="transcript='window'"):
                memory.get()


class TestMessages:
    @pytest.mark.parametrize("way", ["put", "set", "chat"])
    def test_pictures(self, alice: DeltaMemory, llm: DeltaMemLLM, said: Said, way: str) -> None:
        with pytest.raises(MessageError, match=r"message \d \(user\) holds a ImageBlock: this is a text model"):
            llm.chat([PICTURE]) if way == "chat" else alice.set([user("hi"), PICTURE]) if way == "set" else alice.put(
                PICTURE
            )
        assert said("alice") == []

    async def test_pictures_in_an_agent(self, alice: DeltaMemory, llm: DeltaMemLLM, said: Said) -> None:
        with pytest.raises(MessageError, match="ImageBlock"):
            await FunctionAgent(llm=llm).run(copy.deepcopy(PICTURE), memory=alice)
        assert said("alice") == []

    def test_a_call_by_a_user(self, alice: DeltaMemory) -> None:
        with pytest.raises(MessageError, match="ToolCallBlock"):
            alice.put(ChatMessage(role="user", blocks=[ToolCallBlock(tool_name="add")]))

    def test_an_answer_without_its_call(self, llm: DeltaMemLLM) -> None:
        answer = ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "c1"})
        with pytest.raises(MessageError, match="keep calls and answers together"):
            llm.chat([user("add"), answer])

    def test_no_messages(self, llm: DeltaMemLLM) -> None:
        with pytest.raises(MessageError, match="messages is empty"):
            llm.chat([])

    def test_the_assistant_last_gets_another_reply(self, llm: DeltaMemLLM, alice: DeltaMemory, said: Said) -> None:
        alice.put_messages([user("hello"), assistant("hi")])
        assert llm.chat(alice.get()).message.role == "assistant"
        assert said("alice") == [("user", "hello"), ("assistant", "hi")], "a reply that isn't put is no memory"

    def test_too_long(self, alice: DeltaMemory, llm: DeltaMemLLM, said: Said) -> None:
        with pytest.raises(ContextOverflowError, match="16384"):
            alice.put(user("é" * 20000))
        with pytest.raises(ContextOverflowError, match="16384"):
            llm.chat([user("é" * 20000)])
        assert said("alice") == []


class TestOptions:
    @pytest.mark.parametrize("options", [{"temperature": -1}, {"max_new_tokens": 0}, {"seed": -1}])
    def test_of_the_llm(self, engine: DeltaMemEngine, options: dict[str, Any]) -> None:
        with pytest.raises(GenerationError, match=next(iter(options))):
            DeltaMemLLM(engine=engine, **options)

    def test_unknown_ones(self, engine: DeltaMemEngine) -> None:
        with pytest.raises(ValueError, match="temprature"):
            DeltaMemLLM(engine=engine, temprature=1)

    def test_a_tool_choice_that_is_none(self, llm: DeltaMemLLM) -> None:
        with pytest.raises(ConfigError, match="tool_choice is 'weather'"):
            llm.chat([user("hello")], tool_choice="weather")
