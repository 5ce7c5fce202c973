"""Plain LCEL: the memory in chains, message histories, fallbacks, retries, batches and event streams."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableParallel, RunnableWithMessageHistory
from pydantic import PrivateAttr

from deltamem_agents import DeltaMemEngine
from langchain_deltamem import ChatDeltaMem

Said = Callable[[str], list[tuple[str, str]]]
ALICE: RunnableConfig = {"configurable": {"session_id": "alice"}}
TEXTS = ["My dog is called Rex.", "hi", "hi", "And my cat?"]


def lines(messages: list[BaseMessage]) -> list[tuple[str, str]]:
    return [("assistant" if isinstance(message, AIMessage) else "user", message.text) for message in messages]


class TestMessageHistory:
    """Its key in the config is `session_id`, as ours: one name for transcript and memory."""

    @pytest.fixture
    def histories(self) -> dict[str, InMemoryChatMessageHistory]:
        return {}

    @pytest.fixture
    def chain(self, model: ChatDeltaMem, histories: dict[str, InMemoryChatMessageHistory]) -> Any:
        prompt = ChatPromptTemplate.from_messages(
            [("system", "Be kind."), MessagesPlaceholder("history"), ("user", "{text}")]
        )
        return RunnableWithMessageHistory(
            prompt | model,  # type: ignore[arg-type]
            lambda session_id: histories.setdefault(session_id, InMemoryChatMessageHistory()),
            input_messages_key="text",
            history_messages_key="history",
        )

    def test_invoke_and_stream(self, chain: Any, histories: Any, said: Said) -> None:
        for text in TEXTS:
            chain.invoke({"text": text}, ALICE)
            list(chain.stream({"text": text}, ALICE))
        assert said("alice") == lines(histories["alice"].messages)
        assert len(said("alice")) == 4 * len(TEXTS)

    async def test_ainvoke_and_astream(self, chain: Any, histories: Any, said: Said) -> None:
        for text in TEXTS:
            await chain.ainvoke({"text": text}, ALICE)
            assert [chunk async for chunk in chain.astream({"text": text}, ALICE)]
        assert said("alice") == lines(histories["alice"].messages)

    def test_after_a_round_trip_through_json(self, chain: Any, histories: Any, said: Said) -> None:
        """As histories in databases keep messages: the handle survives."""
        from langchain_core.messages import messages_from_dict, messages_to_dict

        for text in TEXTS:
            chain.invoke({"text": text}, ALICE)
            kept = json.loads(json.dumps(messages_to_dict(histories["alice"].messages)))
            histories["alice"] = InMemoryChatMessageHistory(messages=messages_from_dict(kept))
        assert said("alice") == lines(histories["alice"].messages)

    def test_users_apart(self, chain: Any, histories: Any, said: Said) -> None:
        for name in ("alice", "bob", "alice"):
            chain.invoke({"text": f"I am {name}."}, {"configurable": {"session_id": name}})
        assert (len(said("alice")), len(said("bob"))) == (4, 2)

    def test_a_batch_of_users(self, chain: Any, histories: Any, said: Said) -> None:
        names = ["alice", "bob", "carol"]
        chain.batch([{"text": name} for name in names], [{"configurable": {"session_id": name}} for name in names])
        assert all(said(name) == lines(histories[name].messages) for name in names)


class Unsteady(ChatDeltaMem):
    """A model that loses its first replies, after they were made."""

    _losses: int = PrivateAttr(default=1)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._generate(*args, **kwargs)
        if self._losses:
            self._losses -= 1
            raise ConnectionError("lost on the way")
        return result

    async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
        result = await super()._agenerate(*args, **kwargs)
        if self._losses:
            self._losses -= 1
            raise ConnectionError("lost on the way")
        return result


class TestTroubles:
    """The turn was kept, but its reply never arrived: asked again, it is answered again, and said once."""

    @pytest.fixture
    def history(self, model: ChatDeltaMem) -> list[Any]:
        from langchain_core.messages import HumanMessage

        first = HumanMessage("hello", id="1")
        return [first, model.invoke([first], ALICE), HumanMessage("more", id="2")]

    async def test_with_retry(self, history: list[Any], engine: DeltaMemEngine, said: Said) -> None:
        unsteady = Unsteady(engine=engine, max_new_tokens=6)
        sure = unsteady.with_retry(wait_exponential_jitter=False)
        reply = sure.invoke(history, ALICE)
        assert said("alice") == lines([*history, reply])
        unsteady._losses = 2
        history = [*history, reply, ("user", "and?")]
        again = await sure.ainvoke(history, ALICE)
        assert said("alice")[-2:] == [("user", "and?"), ("assistant", again.content)]
        assert len(said("alice")) == 6

    def test_with_fallbacks(self, history: list[Any], model: ChatDeltaMem, engine: DeltaMemEngine, said: Said) -> None:
        unsteady = Unsteady(engine=engine, max_new_tokens=6)
        reply = unsteady.with_fallbacks([model.bind(seed=1, temperature=2.0)]).invoke(history, ALICE)
        assert said("alice") == lines([*history, reply])

    def test_a_fallback_to_another_kind_of_model(self, history: list[Any], engine: DeltaMemEngine, said: Said) -> None:
        """Its reply comes into the memory with the next call, as any foreign message does."""
        greedy = ChatDeltaMem(engine=engine, max_new_tokens=10**6)  # leaves no room for a prompt
        other = RunnableLambda(lambda _: AIMessage("from elsewhere", id="x"))
        reply = greedy.with_fallbacks([other]).invoke(history, ALICE)
        assert len(said("alice")) == 2
        last = ChatDeltaMem(engine=engine, max_new_tokens=6).invoke([*history, reply, ("user", "so?")], ALICE)
        assert said("alice") == [*lines([*history, reply]), ("user", "so?"), ("assistant", last.content)]


class TestBatch:
    async def test_the_turns_of_a_session_follow_each_other_in_order(self, model: ChatDeltaMem, said: Said) -> None:
        replies = model.batch(TEXTS, ALICE) + await model.abatch(TEXTS, ALICE)
        expected = [line for text, reply in zip(TEXTS * 2, replies, strict=True) for line in lines_of(text, reply)]
        assert said("alice") == expected

    async def test_as_completed(self, model: ChatDeltaMem, said: Said) -> None:
        replies = dict(model.batch_as_completed(TEXTS, ALICE))
        assert said("alice") == [line for n, text in enumerate(TEXTS) for line in lines_of(text, replies[n])]
        configs: list[RunnableConfig] = [{"configurable": {"session_id": name}} for name in ("b", "c", "b", "c")]
        later = {number: reply async for number, reply in model.abatch_as_completed(TEXTS, configs)}
        assert said("c") == [*lines_of(TEXTS[1], later[1]), *lines_of(TEXTS[3], later[3])]

    def test_through_a_chain(self, model: ChatDeltaMem, said: Said) -> None:
        chain = ChatPromptTemplate.from_messages([("user", "{x}")]) | model.bind(seed=1) | StrOutputParser()
        chain.batch([{"x": text} for text in TEXTS], ALICE)
        assert [text for role, text in said("alice") if role == "user"] == TEXTS

    def test_an_error_among_them(self, model: ChatDeltaMem, said: Said) -> None:
        replies: Any = model.batch(["one", [], "three"], ALICE, return_exceptions=True)
        assert isinstance(replies[1], Exception)
        assert said("alice") == [*lines_of("one", replies[0]), *lines_of("three", replies[2])]

    def test_none(self, model: ChatDeltaMem) -> None:
        assert model.batch([]) == []


class TestEvents:
    @pytest.mark.parametrize("version", ["v1", "v2"])
    async def test_a_chain_s_events(self, version: Any, model: ChatDeltaMem, said: Said) -> None:
        chain = ChatPromptTemplate.from_messages([("user", "{x}")]) | model | StrOutputParser()
        events = [event async for event in chain.astream_events({"x": "hello"}, ALICE, version=version)]
        text = "".join(
            event["data"]["chunk"].content for event in events if event["event"] == "on_chat_model_stream"  # type: ignore[typeddict-item]
        )
        assert said("alice") == [("user", "hello"), ("assistant", text)]

    async def test_left_early_nothing_is_kept(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        chain = model.with_session("alice") | StrOutputParser()
        events: Any = chain.astream_events("hello", version="v2")
        async for event in events:
            if event["event"] == "on_chat_model_stream":
                break
        await events.aclose()
        await engine.agenerate([{"role": "user", "content": "settle"}], max_new_tokens=1)
        assert engine.sessions() == []

    def test_two_at_once_in_one_session(self, model: ChatDeltaMem, said: Said) -> None:
        """Parallel branches overlap in time: chained, both kept."""
        both = RunnableParallel(one=model, two=model).invoke("hello", ALICE)
        replies = [reply.content for reply in both.values()]
        assert [line for line in said("alice") if line[0] == "user"] == [("user", "hello")] * 2
        assert sorted(text for role, text in said("alice") if role == "assistant") == sorted(replies)


def lines_of(text: str, reply: Any) -> list[tuple[str, str]]:
    return [("user", text), ("assistant", str(reply.content))]
