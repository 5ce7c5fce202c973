"""Whose memory an agent uses: in threads, inside tools, and in the calls that LangChain makes for itself."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from deltamem_agents import DeltaMemEngine, SessionError
from langchain_deltamem import ChatDeltaMem, DeltaMemMiddleware
from tests.langchain.conftest import Said
from tests.langchain.steering import Calls
from tests.langchain.whose import ALICE, ALICE_IN_T1, HELLO, Names, session_of


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
