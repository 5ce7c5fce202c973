"""Whose memory a call uses: by keyword, by config, by the model, through everything that LangChain puts in between."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from deltamem_agents import DeltaMemEngine, SessionError
from langchain_deltamem import ChatDeltaMem, DeltaMemMiddleware
from tests.langchain.steering import Calls

ALICE: RunnableConfig = {"configurable": {"session_id": "alice"}}
ALICE_IN_T1: RunnableConfig = {"configurable": {"session_id": "alice", "thread_id": "t1"}}
HELLO: Any = {"messages": [("user", "hello")]}
Said = Callable[[str], list[tuple[str, str]]]


@pytest.fixture
def names(engine: DeltaMemEngine) -> Callable[[], list[str]]:
    """The sessions there are."""
    return lambda: [info.name for info in engine.sessions()]


Names = Callable[[], list[str]]


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


class TestAgents:
    @pytest.fixture
    def agent(self, model: ChatDeltaMem) -> Any:
        return create_agent(model, system_prompt="Be kind.", checkpointer=InMemorySaver())

    @pytest.fixture
    def config(self) -> RunnableConfig:
        return {"configurable": {"session_id": "alice", "thread_id": "t1"}}

    def test_invoke(self, agent: Any, config: RunnableConfig, said: Said) -> None:
        reply = agent.invoke(HELLO, config)["messages"][-1]
        assert session_of(reply) == "alice"
        assert said("alice") == [("user", "hello"), ("assistant", reply.content)]

    async def test_ainvoke(self, agent: Any, config: RunnableConfig, said: Said) -> None:
        reply = (await agent.ainvoke(HELLO, config))["messages"][-1]
        assert said("alice") == [("user", "hello"), ("assistant", reply.content)]

    @pytest.mark.parametrize("mode", ["values", "messages", "updates"])
    def test_stream(self, agent: Any, config: RunnableConfig, said: Said, mode: str) -> None:
        items = list(agent.stream(HELLO, config, stream_mode=mode))
        self.check(agent, config, said, mode, items)

    @pytest.mark.parametrize("mode", ["values", "messages", "updates"])
    async def test_astream(self, agent: Any, config: RunnableConfig, said: Said, mode: str) -> None:
        items = [item async for item in agent.astream(HELLO, config, stream_mode=mode)]
        self.check(agent, config, said, mode, items)

    def check(self, agent: Any, config: RunnableConfig, said: Said, mode: str, items: list[Any]) -> None:
        reply = agent.get_state(config).values["messages"][-1]
        assert session_of(reply) == "alice"
        assert said("alice") == [("user", "hello"), ("assistant", reply.content)]
        if mode == "messages":
            assert len(items) > 2
            assert "".join(chunk.content for chunk, _ in items) == reply.content
        else:
            last = items[-1]["messages"][-1] if mode == "values" else items[-1]["model"]["messages"][-1]
            assert last.content == reply.content

    @pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
    async def test_events_of_every_version(self, agent: Any, config: RunnableConfig, said: Said) -> None:
        """Version v3 keeps the reply as content blocks: the next turn knows it all the same."""
        for version in ("v1", "v2"):
            events = [event["event"] async for event in agent.astream_events(HELLO, config, version=version)]
            assert events.count("on_chat_model_end") == 1
        await (await agent.astream_events(HELLO, config, version="v3")).output()
        state = agent.stream_events(HELLO, config, version="v3").output
        assert len(said("alice")) == 8
        assert [text for _, text in said("alice")] == [message.text for message in state["messages"]]

    def test_inside_another_graph(self, model: ChatDeltaMem, said: Said) -> None:
        agent = create_agent(model)
        outer = RunnableLambda(lambda state: agent.invoke(state))
        outer.invoke(HELLO, ALICE)
        assert len(said("alice")) == 2

    def test_the_model_s_own_session(self, model: ChatDeltaMem, said: Said) -> None:
        create_agent(model.with_session("mine")).invoke(HELLO)
        assert len(said("mine")) == 2

    def test_another_session_may_not_take_over_a_thread(self, agent: Any, config: RunnableConfig, names: Names) -> None:
        """Its history carries Alice's handles: it may be her conversation."""
        agent.invoke(HELLO, config)
        with pytest.raises(SessionError, match="none of the lines of session 'bob'"):
            agent.invoke({"messages": [("user", "more")]}, {"configurable": {"session_id": "bob", "thread_id": "t1"}})
        assert "bob" not in names()


class TestThreads:
    """One user, many threads: one memory, and a label for each line of conversation."""

    def test_session_from_thread(self, engine: DeltaMemEngine, names: Names) -> None:
        model = ChatDeltaMem(engine=engine, max_new_tokens=6, session_from="thread_id", session_id="mine")
        assert session_of(model.invoke("hello", {"configurable": {"thread_id": 7}})) == "7"
        both: RunnableConfig = {"configurable": {"thread_id": "t1", "session_id": "alice"}}
        assert session_of(model.invoke("hello", both)) == "alice"
        assert session_of(model.invoke("hello", both, session_id="bob")) == "bob"
        assert session_of(model.invoke("hello")) == "mine"
        assert names() == ["7", "alice", "bob", "mine"]

    def test_threads_of_one_user_are_labelled(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        agent = create_agent(model.with_session("alice"), checkpointer=InMemorySaver())
        for thread in ("t1", "t2", "t1"):
            agent.invoke(HELLO, {"configurable": {"thread_id": thread}})
        assert [turn.thread for turn in engine.session("alice").log()] == ["t1", "t2", "t1"]

    def test_agents_that_are_nodes_undo_nothing_of_each_other(self, model: ChatDeltaMem, said: Said) -> None:
        """Each has messages of its own, under the thread that they share."""
        talks: dict[str, list[Any]] = {"writer": [], "critic": []}

        def node(name: str) -> Any:
            def talk(state: MessagesState) -> dict[str, Any]:
                inner = create_agent(model).invoke({"messages": [*talks[name], HumanMessage(f"to the {name}")]})
                talks[name] = inner["messages"]
                return {"messages": []}

            return talk

        builder = StateGraph(MessagesState)
        for name in talks:
            builder.add_node(name, node(name))
        builder.add_edge(START, "writer")
        builder.add_edge("writer", "critic")
        builder.add_edge("critic", END)
        graph = builder.compile(checkpointer=InMemorySaver())
        config: RunnableConfig = {"configurable": {"thread_id": "t1", "session_id": "alice"}}
        for _ in range(3):
            graph.invoke(HELLO, config)
        assert [text for role, text in said("alice") if role == "user"] == ["to the writer", "to the critic"] * 3
        assert {turn.thread for turn in model.get_engine().session("alice").log()} == {"t1/writer", "t1/critic"}


class TestInsideTools:
    """A tool inherits the config of the agent that calls it, and with it whose memory the agent has."""

    def run(self, model: ChatDeltaMem, work: Callable[[], Any]) -> Any:
        """An agent whose model must call a tool that does some work."""

        def look_up() -> str:
            """Looks something up."""
            return str(work())

        agent = create_agent(model, [look_up], middleware=[Calls("look_up")], checkpointer=InMemorySaver())
        return agent.invoke(HELLO, ALICE_IN_T1)["messages"]

    def test_a_subagent_is_kept_apart(self, model: ChatDeltaMem, said: Said, names: Names) -> None:
        subagent = create_agent(model)
        work = RunnableLambda(lambda _: subagent.invoke({"messages": [("user", "a task")]})["messages"][-1])
        assert self.run(model, lambda: session_of(work.invoke("")))[2].content == "None"
        assert [role for role, _ in said("alice")] == ["user", "assistant", "tool", "assistant"]
        assert "a task" not in [text for _, text in said("alice")]
        assert names() == ["alice"]

    def test_so_is_the_model_itself(self, model: ChatDeltaMem, said: Said) -> None:
        """Also where the session is the model's own."""
        mine = model.with_session("mine")
        work = RunnableLambda(lambda _: mine.invoke("Grade this."))
        agent_config: RunnableConfig = {"configurable": {"thread_id": "t1"}}

        def look_up() -> str:
            """Looks something up."""
            return str(session_of(work.invoke("")))

        agent = create_agent(mine, [look_up], middleware=[Calls("look_up")])
        assert agent.invoke(HELLO, agent_config)["messages"][2].content == "None"
        assert "Grade this." not in [text for _, text in said("mine")]

    async def test_an_async_one_too(self, model: ChatDeltaMem, said: Said) -> None:
        subagent = create_agent(model)

        async def look_up() -> str:
            """Looks something up."""
            state: Any = await subagent.ainvoke({"messages": [("user", "a task")]})
            return str(session_of(state["messages"][-1]))

        agent = create_agent(model, [look_up], middleware=[Calls("look_up")], checkpointer=InMemorySaver())
        messages = (await agent.ainvoke(HELLO, ALICE_IN_T1))["messages"]
        assert messages[2].content == "None"
        assert "a task" not in [text for _, text in said("alice")]

    def test_a_session_that_the_call_names_counts(self, model: ChatDeltaMem, said: Said) -> None:
        middleware = DeltaMemMiddleware(session=lambda runtime: "researcher")
        subagent = create_agent(model, middleware=[middleware])
        self.run(model, lambda: subagent.invoke({"messages": [("user", "a task")]}))
        self.run(model, lambda: model.invoke("a note", session_id="notes"))
        assert said("researcher")[0] == ("user", "a task")
        assert said("notes")[0] == ("user", "a note")

    def test_the_same_session_by_name_undoes_nothing(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        messages = self.run(model, lambda: model.invoke("a note", session_id="alice").content)
        log = engine.session("alice").log()
        assert [turn.thread for turn in log] == ["t1", "t1/tools", "t1"]
        assert [turn.parent for turn in log] == [None, log[0].id, log[1].id]
        assert len(messages) == 4

    def test_tool_nodes_have_the_names_that_a_graph_gives_them(self, engine: DeltaMemEngine, names: Names) -> None:
        model = ChatDeltaMem(engine=engine, max_new_tokens=6, tool_nodes=("tools", "act"))
        builder = StateGraph(MessagesState)
        builder.add_node("act", lambda state: {"messages": [model.invoke(state["messages"])]})
        builder.add_edge(START, "act")
        builder.compile().invoke(HELLO, ALICE)
        assert names() == []


class TestHelperCalls:
    def test_marked_calls_leave_the_memory_alone(self, model: ChatDeltaMem, names: Names) -> None:
        helper: RunnableConfig = {"metadata": {"lc_source": "summarization"}, **ALICE}
        assert session_of(model.invoke("Summarise.", helper)) is None
        assert session_of(list(model.with_session("mine").stream("Summarise.", helper))[-1]) is None
        bound = model.bind(session_id="bound", memory="read_write")
        assert session_of(bound.invoke("Summarise.", helper)) is None
        assert names() == []

    async def test_summarization(self, model: ChatDeltaMem, said: Said) -> None:
        """The summary is written by the same model, in the same graph, under the same config."""
        summarise = SummarizationMiddleware(model, trigger=("messages", 4), keep=("messages", 2))
        agent = create_agent(model, middleware=[summarise], checkpointer=InMemorySaver())
        config: RunnableConfig = {"configurable": {"session_id": "alice", "thread_id": "t1"}}
        replies: list[Any] = []
        texts = ["one", "two", "three", "four"]
        for text in texts:
            state = await agent.ainvoke({"messages": [("user", text)]}, config)
            replies.append(state["messages"][-1].content)
        assert any("lc_source" in message.additional_kwargs for message in state["messages"])
        expected = [line for t, r in zip(texts, replies, strict=True) for line in (("user", t), ("assistant", r))]
        assert said("alice") == expected


def session_of(message: Any) -> str | None:
    assert isinstance(message, AIMessage)
    handle = message.response_metadata.get("delta_mem")
    return None if handle is None else str(handle["session"])


def head(engine: DeltaMemEngine, session: str) -> Any:
    info = engine.store.session(session)
    assert info is not None
    assert info.head is not None
    return engine.store.snapshot(info.head)
