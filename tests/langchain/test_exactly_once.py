"""Whatever part of the history a caller passes, each message is on the session's ledger once."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, trim_messages
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.message import add_messages

from deltamem_agents import DeltaMemEngine, SessionError
from langchain_deltamem import ChatDeltaMem
from langchain_deltamem.messages import HANDLE, to_engine

Said = Callable[[str], list[tuple[str, str]]]
TEXTS = ["My dog is called Rex.", "hi", "hi", "And my cat?"]


@pytest.fixture
def alice(model: ChatDeltaMem) -> ChatDeltaMem:
    return model.with_session("alice")


def lines(messages: list[BaseMessage]) -> list[tuple[str, str]]:
    kinds: tuple[tuple[type[BaseMessage], str], ...] = ((HumanMessage, "user"), (AIMessage, "assistant"))
    return [(role, message.text) for message in messages for kind, role in kinds if isinstance(message, kind)]


class TestFullHistory:
    def test_by_handle(self, alice: ChatDeltaMem, said: Said) -> None:
        history: list[BaseMessage] = [SystemMessage("Be kind.")]
        for text in TEXTS:
            history.append(HumanMessage(text))
            history.append(alice.invoke(history))
        assert said("alice") == lines(history)

    def test_by_streamed_replies(self, alice: ChatDeltaMem, said: Said) -> None:
        """Chunks added up carry the handle as a whole message does."""
        history: list[BaseMessage] = []
        for text in TEXTS:
            history.append(HumanMessage(text))
            chunks = list(alice.stream(history))
            reply = chunks[0]
            for chunk in chunks[1:]:
                reply = reply + chunk
            history.append(reply)
        assert said("alice") == lines(history)

    def test_by_ids_of_a_reducer(self, alice: ChatDeltaMem, said: Said) -> None:
        history: Any = []
        for text in TEXTS:
            history = add_messages(history, [HumanMessage(text)])
            history = add_messages(history, [alice.invoke(history)])
        assert all(message.id for message in history)
        assert said("alice") == lines(history)

    def test_by_content_when_ids_and_metadata_are_gone(self, alice: ChatDeltaMem, said: Said) -> None:
        """A history kept elsewhere as plain roles and texts. (The same text twice is told apart by its place.)"""
        plain: list[tuple[str, str]] = []
        for text in TEXTS:
            plain.append(("user", text))
            plain.append(("assistant", str(alice.invoke(plain).content)))
        assert said("alice") == plain

    def test_the_reply_s_entry_goes_by_the_handle(self, alice: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        reply = alice.invoke([HumanMessage("hello", id="h1")])
        info = engine.store.session("alice")
        assert info is not None
        assert info.head is not None
        entries = engine.store.snapshot(info.head).entries
        assert [entry.message_id for entry in entries] == ["h1", reply.response_metadata[HANDLE]["snapshot"]]
        assert reply.id is not None
        assert reply.id.startswith("lc_run-")  # core's own, kept
        handed_on = to_engine([reply])[0]
        assert (handed_on.id, handed_on.snapshot) == (reply.id, info.head)

    @pytest.mark.parametrize("handle", [True, False])
    def test_an_edited_reply_is_what_was_said(self, alice: ChatDeltaMem, said: Said, handle: bool) -> None:
        """Guards and formatters rewrite replies; what they let through takes the place of what was generated."""
        hello = HumanMessage("hello", id="1")
        first = alice.invoke([hello])
        bare = AIMessage("(redacted)", id=first.id)
        rewritten = first.model_copy(update={"content": "(redacted)"}) if handle else bare
        history = [hello, rewritten, HumanMessage("more", id="2")]
        assert said("alice") == lines([hello, first])
        second = alice.invoke(history)
        assert said("alice") == lines([*history, second])

    def test_replies_that_were_not_kept_come_in_later(self, alice: ChatDeltaMem, said: Said) -> None:
        """A turn in mode "read" is no part of the session until a history that has it is."""
        history: list[BaseMessage] = [HumanMessage("one")]
        history.append(alice.invoke(history))
        history.append(HumanMessage("two"))
        history.append(alice.invoke(history, memory="read"))
        history.append(HumanMessage("three"))
        history.append(alice.invoke(history))
        assert said("alice") == lines(history)


class TestAgents:
    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_a_checkpointer_passes_everything(self, alice: ChatDeltaMem, said: Said, asynchronous: bool) -> None:
        agent = create_agent(alice, system_prompt="Be kind.", checkpointer=InMemorySaver())
        config: RunnableConfig = {"configurable": {"thread_id": "t1"}}
        for text in TEXTS:
            asked: Any = {"messages": [("user", text)]}
            state = await agent.ainvoke(asked, config) if asynchronous else agent.invoke(asked, config)
        assert said("alice") == lines(state["messages"])
        assert len(said("alice")) == 2 * len(TEXTS)

    def test_two_threads_of_one_user(self, alice: ChatDeltaMem, said: Said) -> None:
        agent = create_agent(alice, checkpointer=InMemorySaver())
        everything = []
        for text, thread in zip(TEXTS, ["t1", "t2", "t1", "t2"], strict=True):
            state = agent.invoke({"messages": [HumanMessage(text)]}, {"configurable": {"thread_id": thread}})
            everything += state["messages"][-2:]
        assert said("alice") == lines(everything)


class TestPartOfIt:
    def test_trimmed(self, alice: ChatDeltaMem, said: Said) -> None:
        history: list[BaseMessage] = [SystemMessage("Be kind.")]
        for text in TEXTS:
            history.append(HumanMessage(text))
            kept = trim_messages(
                history, max_tokens=3, token_counter=len, strategy="last", include_system=True, start_on="human"
            )
            history.append(alice.invoke(kept))
        assert len(kept) < len(history) - 1
        assert said("alice") == lines(history)

    def test_only_the_new(self, alice: ChatDeltaMem, said: Said) -> None:
        replies = [alice.invoke(text).content for text in TEXTS]
        expected = [line for t, r in zip(TEXTS, replies, strict=True) for line in (("user", t), ("assistant", str(r)))]
        assert said("alice") == expected

    def test_a_summary_in_front_is_shown_not_kept(self, alice: ChatDeltaMem, said: Said) -> None:
        history: list[BaseMessage] = [HumanMessage("one")]
        history.append(alice.invoke(history))
        asked = HumanMessage("two")
        plain = alice.invoke([*history, asked], memory="read")
        summarised = alice.invoke([HumanMessage("Summary: we counted."), *history, asked])
        assert (summarised.usage_metadata or {})["input_tokens"] > (plain.usage_metadata or {})["input_tokens"]
        assert said("alice") == lines([*history, asked, summarised])

    def test_a_foreign_reply_is_new_to_the_session(self, alice: ChatDeltaMem, model: ChatDeltaMem, said: Said) -> None:
        """Another model's answer in between, as after a fallback."""
        history: list[BaseMessage] = [HumanMessage("one")]
        history.append(alice.invoke(history))
        history += [HumanMessage("two"), AIMessage("the other model's answer", id="x"), HumanMessage("three")]
        history.append(alice.invoke(history))
        assert said("alice") == lines(history)

    def test_another_session_s_history_is_refused(self, model: ChatDeltaMem, said: Said) -> None:
        """A handle of Alice's in a call for Bob: it may be somebody else's conversation."""
        history: list[BaseMessage] = [HumanMessage("one")]
        history.append(model.invoke(history, session_id="alice"))
        history.append(HumanMessage("two"))
        before = said("alice")
        with pytest.raises(SessionError, match="none of the lines of session 'bob'"):
            model.invoke(history, session_id="bob")
        assert said("alice") == before
        assert model.get_engine().store.session("bob") is None
