"""Whose memory a call uses: by keyword, by config, by the model, through everything that LangChain puts in between."""

from typing import Any
from uuid import UUID

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableConfig, RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph

from deltamem_agents import DeltaMemEngine, SessionError
from langchain_deltamem import ChatDeltaMem
from tests.langchain.conftest import Said
from tests.langchain.whose import ALICE, ALICE_IN_T1, HELLO, Names, session_of


class TestOrder:
    def test_keyword_then_config_then_model_then_none(self, model: ChatDeltaMem, names: Names) -> None:
        assert session_of(model.invoke("hello")) is None
        assert names() == []
        mine = model.with_session("mine")
        assert session_of(mine.invoke("hello")) == "mine"
        assert session_of(mine.invoke("hello", ALICE)) == "alice"
        assert session_of(mine.invoke("hello", ALICE, session_id="bob")) == "bob"
        assert names() == ["alice", "bob", "mine"]

    async def test_everywhere_alike(self, model: ChatDeltaMem, names: Names) -> None:
        mine = model.with_session("mine")
        assert session_of(await mine.ainvoke("hello", ALICE)) == "alice"
        assert session_of(list(mine.stream("hello", session_id="bob"))[-1]) == "bob"
        assert session_of([chunk async for chunk in mine.astream("hello")][-1]) == "mine"

    def test_generate_without_config(self, model: ChatDeltaMem) -> None:
        """`generate` and `generate_prompt` are public, too, and see no config."""
        result = model.with_session("mine").generate([[HumanMessage("hello")]])
        assert session_of(result.generations[0][0].message) == "mine"  # type: ignore[union-attr]

    def test_with_session_shares_the_engine(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        alice, bob = model.with_session("alice"), model.with_session("bob")
        assert alice.get_engine() is bob.get_engine() is engine
        assert (model.session_id, alice.session_id, bob.session_id) == (None, "alice", "bob")

    def test_a_thread_is_no_session(self, model: ChatDeltaMem, names: Names) -> None:
        assert session_of(model.invoke("hello", {"configurable": {"thread_id": "t1"}})) is None
        assert names() == []

    @pytest.mark.parametrize("thread", ["t1", 7])
    def test_a_thread_labels_the_turn(self, model: ChatDeltaMem, engine: DeltaMemEngine, thread: object) -> None:
        model.invoke("hello", {"configurable": {"thread_id": thread, "session_id": "alice"}})
        assert head(engine, "alice").thread == str(thread)

    def test_memory_modes(self, model: ChatDeltaMem, said: Said) -> None:
        alice = model.with_session("alice")
        alice.invoke("hello")
        before = said("alice")
        assert before
        assert alice.invoke("and?", memory="off").content == model.invoke("and?").content
        alice.invoke("and?", memory="read")
        alice.model_copy(update={"memory": "read"}).invoke("and?")
        assert said("alice") == before

    @pytest.mark.parametrize("name", ["", " alice", "a\nb"])
    def test_a_bad_name_is_refused(self, model: ChatDeltaMem, name: Any) -> None:
        for call in (
            lambda: model.invoke("hello", session_id=name),
            lambda: model.invoke("hello", {"configurable": {"session_id": name}}),
            lambda: model.with_session(name).invoke("hello"),
        ):
            with pytest.raises(SessionError, match="session"):
                call()


class TestNames:
    """LangGraph takes any thread_id, and composes namespaces of any length."""

    @pytest.mark.parametrize("name", [42, UUID(int=7)])
    async def test_numbers_and_uuids(self, model: ChatDeltaMem, names: Names, name: Any) -> None:
        config: RunnableConfig = {"configurable": {"session_id": name}}
        replies = [model.invoke("hello", config), *model.batch(["hello"], config)]
        replies += [await model.ainvoke("hello", session_id=name), model.with_session(name).invoke("hello")]
        replies += [ChatDeltaMem(engine=model.engine, session_id=name, max_new_tokens=2).invoke("hello")]
        result = model.generate([[HumanMessage("hello")]], session_id=name)
        replies += [result.generations[0][0].message]  # type: ignore[union-attr]
        assert {session_of(reply) for reply in replies} == {str(name)}
        assert names() == [str(name)]

    @pytest.mark.parametrize("name", [True, 1.5, b"x"])
    def test_what_is_no_name(self, model: ChatDeltaMem, name: Any) -> None:
        with pytest.raises(SessionError, match="named by a string"):
            model.invoke("hello", session_id=name)

    @pytest.mark.parametrize("thread", ["t" * 500, " blanks ", "two\nlines", "\n"])
    def test_labels_that_nobody_gave(self, model: ChatDeltaMem, engine: DeltaMemEngine, thread: str) -> None:
        configs: list[RunnableConfig] = [
            {"configurable": {"session_id": "alice", "thread_id": thread + end, "checkpoint_ns": "a:1|b:2|model:3"}}
            for end in ("", "", " other")
        ]
        for config in configs:
            model.invoke("hello", config)
        info = engine.store.session("alice")
        assert info is not None
        first, second, third = (turn.thread for turn in engine.store.line(info.head or ""))
        assert first == second != third

    def test_deeply_nested_graphs(self, model: ChatDeltaMem, said: Said) -> None:
        def node(state: MessagesState) -> dict[str, Any]:
            return {"messages": [model.invoke(state["messages"])]}

        graph: Any = node
        for depth in range(4):
            nested = StateGraph(MessagesState)
            nested.add_node(f"{'a rather long name of a node ' * 3}{depth}", graph)
            nested.add_edge(START, f"{'a rather long name of a node ' * 3}{depth}")
            graph = nested.compile()
        graph.invoke(HELLO, ALICE_IN_T1)
        assert len(said("alice")) == 2


class TestRunnables:
    def test_pipes(self, model: ChatDeltaMem, said: Said) -> None:
        chain = ChatPromptTemplate.from_messages([("system", "Be kind."), ("user", "{x}")]) | model | StrOutputParser()
        answer = chain.invoke({"x": "hello"}, ALICE)
        assert said("alice") == [("user", "hello"), ("assistant", answer)]
        assert "".join(chain.stream({"x": "more"}, ALICE)) == said("alice")[-1][1]

    def test_a_function_in_a_pipe_without_config(self, model: ChatDeltaMem, said: Said) -> None:
        RunnableLambda(lambda text: model.invoke(text)).invoke("hello", ALICE)
        assert len(said("alice")) == 2

    def test_bind(self, model: ChatDeltaMem) -> None:
        bound = model.bind(session_id="bound")
        assert session_of(bound.invoke("hello", ALICE)) == "bound"

    def test_with_config(self, model: ChatDeltaMem) -> None:
        configured = model.with_config(configurable={"session_id": "alice"})
        assert session_of(configured.invoke("hello")) == "alice"
        assert session_of(configured.invoke("hello", {"configurable": {"session_id": "bob"}})) == "bob"

    def test_with_retry_keeps_one_turn(self, engine: DeltaMemEngine, said: Said) -> None:
        class Flaky(ChatDeltaMem):
            failures: int = 1

            def get_engine(self) -> DeltaMemEngine:
                if self.failures:
                    self.failures -= 1
                    raise ConnectionError
                return super().get_engine()

        flaky = Flaky(engine=engine, max_new_tokens=6)
        flaky.with_retry(wait_exponential_jitter=False).invoke("hello", ALICE)
        assert [role for role, _ in said("alice")] == ["user", "assistant"]

    def test_with_fallbacks(self, model: ChatDeltaMem, said: Said) -> None:
        greedy = model.model_copy(update={"max_new_tokens": 10**6})  # leaves no room for a prompt
        reply = greedy.with_fallbacks([model]).invoke("hello", ALICE)
        assert said("alice") == [("user", "hello"), ("assistant", reply.content)]

    def test_batch_of_sessions(self, model: ChatDeltaMem, said: Said) -> None:
        configs: list[RunnableConfig] = [{"configurable": {"session_id": name}} for name in ("alice", "bob")]
        replies = model.batch(["I am Alice.", "I am Bob."], configs)
        assert said("alice") == [("user", "I am Alice."), ("assistant", replies[0].content)]
        assert said("bob") == [("user", "I am Bob."), ("assistant", replies[1].content)]

    def test_configurable_fields(self, model: ChatDeltaMem) -> None:
        """These make a new model with every field of the old one, the engine among them."""
        adjustable = model.configurable_fields(max_new_tokens=ConfigurableField(id="limit"))
        reply = adjustable.invoke("hello", {"configurable": {"limit": 2, "session_id": "alice"}})
        assert reply.usage_metadata is not None
        assert (reply.usage_metadata["output_tokens"], session_of(reply)) == (2, "alice")


class TestGraphs:
    def test_a_node_without_config(self, model: ChatDeltaMem, said: Said) -> None:
        graph = self.graph(lambda state: {"messages": [model.invoke(state["messages"])]})
        graph.invoke(HELLO, ALICE)
        assert len(said("alice")) == 2

    async def test_an_async_node_without_config(self, model: ChatDeltaMem, said: Said) -> None:
        async def node(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await model.ainvoke(state["messages"])]}

        await self.graph(node).ainvoke(HELLO, ALICE)
        assert len(said("alice")) == 2

    def test_a_node_s_other_calls_are_stateless_when_only_the_thread_is_named(
        self, model: ChatDeltaMem, names: Names
    ) -> None:
        def node(state: MessagesState) -> dict[str, Any]:
            model.invoke("Grade this answer.")
            return {"messages": [model.with_session("alice").invoke(state["messages"])]}

        self.graph(node).invoke(HELLO, {"configurable": {"thread_id": "t1"}})
        assert names() == ["alice"]

    def graph(self, node: Any) -> Any:
        builder = StateGraph(MessagesState)
        builder.add_node("node", node)
        builder.add_edge(START, "node")
        builder.add_edge("node", END)
        return builder.compile()


def head(engine: DeltaMemEngine, session: str) -> Any:
    info = engine.store.session(session)
    assert info is not None
    assert info.head is not None
    return engine.store.snapshot(info.head)
