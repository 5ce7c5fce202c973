"""`DeltaMemMiddleware`: an agent's memory is its user's, told by the runtime context."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, SummarizationMiddleware
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from deltamem_agents import ConfigError, DeltaMemEngine, SessionError
from langchain_deltamem import ChatDeltaMem, DeltaMemMiddleware

Said = Callable[[str], list[tuple[str, str]]]


@dataclass
class User:
    user_id: str | None


def ask(agent: Any, text: str = "hello", context: Any = None, thread: str = "t1", **configurable: str) -> AIMessage:
    config = {"configurable": {"thread_id": thread, **configurable}}
    reply = agent.invoke({"messages": [HumanMessage(text)]}, config, context=context)["messages"][-1]
    assert isinstance(reply, AIMessage)
    return reply


def agent_with(model: ChatDeltaMem, *middleware: Any, schema: Any = User) -> Any:
    return create_agent(model, context_schema=schema, middleware=middleware, checkpointer=InMemorySaver())


class TestSession:
    @pytest.mark.parametrize("session", ["user_id", lambda runtime: runtime.context.user_id])
    async def test_from_the_context(self, session: Any, model: ChatDeltaMem, said: Said) -> None:
        agent = agent_with(model, DeltaMemMiddleware(session=session))
        first = ask(agent, context=User("alice"))
        config: Any = {"configurable": {"thread_id": "t2"}}
        given: Any = {"messages": [HumanMessage("hi")]}
        second = (await agent.ainvoke(given, config, context=User("bob")))["messages"][-1]
        assert said("alice") == [("user", "hello"), ("assistant", first.content)]
        assert said("bob") == [("user", "hi"), ("assistant", second.content)]

    def test_from_a_dict(self, model: ChatDeltaMem, said: Said) -> None:
        ask(agent_with(model, DeltaMemMiddleware(session="name"), schema=dict), context={"name": "alice"})
        assert len(said("alice")) == 2

    def test_before_config_and_model(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        agent = agent_with(model.with_session("mine"), DeltaMemMiddleware(session="user_id"))
        ask(agent, context=User("alice"), session_id="config")
        assert [info.name for info in engine.sessions()] == ["alice"]

    def test_nobody_is_stateless(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        """An anonymous user never gets the session that the model falls back to."""
        ask(agent_with(model.with_session("mine"), DeltaMemMiddleware(session="user_id")), context=User(None))
        assert engine.sessions() == []

    def test_without_a_session_of_its_own(self, model: ChatDeltaMem, said: Said) -> None:
        ask(agent_with(model, DeltaMemMiddleware(recent_messages=0)), session_id="alice")
        assert len(said("alice")) == 2

    @pytest.mark.parametrize(("context", "found"), [(None, "none was given"), (User("x"), "found a User without it")])
    def test_a_field_that_is_not_there(self, context: Any, found: str, model: ChatDeltaMem) -> None:
        agent = agent_with(model, DeltaMemMiddleware(session="customer"))
        with pytest.raises(SessionError, match=f"'customer'.*{found}"):
            ask(agent, context=context)

    def test_one_user_s_memory_over_many_threads(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        agent = agent_with(model, DeltaMemMiddleware(session="user_id"))
        for thread in ("t1", "t2", "t1"):
            ask(agent, f"in {thread}", User("alice"), thread)
        log = engine.session("alice").log()
        assert [turn.thread for turn in log] == ["t1", "t2", "t1"]
        assert [turn.parent for turn in log] == [None, log[0].id, log[1].id]

    def test_tools_are_bound_beside_it(self, model: ChatDeltaMem, said: Said) -> None:
        """An agent with tools binds them anew for each call, and the settings with them."""

        def look_up(word: str) -> str:
            """Looks a word up."""
            return word

        agent = create_agent(
            model, [look_up], context_schema=User, middleware=[DeltaMemMiddleware(session="user_id")]
        )
        ask(agent, context=User("alice"))
        assert [role for role, _ in said("alice")] == ["user", "assistant"]


class TestSettings:
    def test_memory_mode(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        ask(agent_with(model, DeltaMemMiddleware(session="user_id", memory="read")), context=User("alice"))
        assert engine.sessions() == []

    def test_recent_messages(self, model: ChatDeltaMem) -> None:
        """Nothing is trimmed from the agent's state; the prompt has the window alone."""
        tokens = {}
        for recent in (0, 20):
            agent = agent_with(model, DeltaMemMiddleware(session="user_id", recent_messages=recent))
            replies = [ask(agent, "hello", User(f"user {recent}")) for _ in range(4)]
            tokens[recent] = [(reply.usage_metadata or {})["input_tokens"] for reply in replies]
            state = agent.get_state({"configurable": {"thread_id": "t1"}})
            assert len(state.values["messages"]) == 8
        assert len(set(tokens[0])) == 1
        assert tokens[20] == sorted(set(tokens[20]))

    def test_a_bad_setting_is_refused(self, model: ChatDeltaMem) -> None:
        for bad in (DeltaMemMiddleware(recent_messages=-1), DeltaMemMiddleware(memory="often")):  # type: ignore[arg-type]
            with pytest.raises(ConfigError):
                ask(agent_with(model, bad), session_id="alice")

    def test_other_models_are_left_alone(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        """A fallback knows nothing of sessions."""
        greedy = model.model_copy(update={"max_new_tokens": 10**6})  # leaves no room for a prompt
        fallback = ModelFallbackMiddleware(FakeListChatModel(responses=["from elsewhere"]))
        agent = agent_with(greedy, fallback, DeltaMemMiddleware(session="user_id"))
        assert ask(agent, context=User("alice")).content == "from elsewhere"
        assert engine.sessions() == []

    def test_beside_summarization(self, model: ChatDeltaMem, said: Said) -> None:
        summarise = SummarizationMiddleware(model, trigger=("messages", 4), keep=("messages", 2))
        agent = agent_with(model, summarise, DeltaMemMiddleware(session="user_id", recent_messages=2))
        expected = []
        for text in ("one", "two", "three", "four"):
            expected += [("user", text), ("assistant", str(ask(agent, text, User("alice")).content))]
        assert said("alice") == expected

    def test_a_summary_is_shown_and_nobody_s_words(self, model: ChatDeltaMem, said: Said) -> None:
        """Also where it is all that is left beside what is new: then nothing in the history is known."""
        summarise = SummarizationMiddleware(model, trigger=("messages", 3), keep=("messages", 1))
        agent = agent_with(model, summarise, DeltaMemMiddleware(session="user_id", recent_messages=2))
        expected, prompts = [], []
        for text in ("one", "two", "three"):
            reply = ask(agent, text, User("alice"))
            prompts.append((reply.usage_metadata or {})["input_tokens"])
            expected += [("user", text), ("assistant", str(reply.content))]
        kept = agent.get_state({"configurable": {"thread_id": "t1"}}).values["messages"]
        assert kept[0].additional_kwargs == {"lc_source": "summarization"}
        assert said("alice") == expected
        assert prompts[1] > prompts[0] + len("Here is a summary of the conversation to date")
