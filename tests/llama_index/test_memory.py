"""`DeltaMemory` as a LlamaIndex memory: what core's tests check of theirs, and what a handle on a session adds."""

import asyncio
import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ThinkingBlock, ToolCallBlock
from workflows.context.serializers import JsonSerializer

from deltamem_agents import DeltaMemEngine, Message
from llama_index_deltamem import DeltaMemLLM, DeltaMemory
from llama_index_deltamem.ledger import not_yet_said
from llama_index_deltamem.messages import StampedMessage
from tests.llama_index.lines import Said, assistant, spoken, user

CALL = ChatMessage(
    role="assistant", blocks=[ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 1, "b": [2]})]
)
ANSWER = ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "c1"})


class TestPutAndGet:
    def test_in_order(self, alice: DeltaMemory) -> None:
        assert alice.get() == alice.get_all() == []
        for message in (user("one"), assistant("two")):
            alice.put(message)
        assert spoken(alice.get()) == spoken(alice.get_all()) == [("user", "one"), ("assistant", "two")]

    async def test_async(self, alice: DeltaMemory) -> None:
        await alice.aput(user("one"))
        await alice.aput_messages([assistant("two"), user("three")])
        assert spoken(await alice.aget()) == spoken(await alice.aget_all())
        assert [text for _, text in spoken(await alice.aget())] == ["one", "two", "three"]

    def test_a_batch_is_one_commit(self, alice: DeltaMemory, engine: DeltaMemEngine) -> None:
        alice.put_messages([user("one"), assistant("two"), user("three")])
        assert engine.session("alice").info.turns == 1
        assert engine.session("alice").info.messages == 3

    def test_nothing_put(self, alice: DeltaMemory, said: Said) -> None:
        alice.put_messages([])
        assert said("alice") == []

    def test_the_same_text_again_is_new(self, alice: DeltaMemory, said: Said) -> None:
        alice.put(user("hi"))
        alice.put(user("hi"))
        assert said("alice") == [("user", "hi")] * 2

    def test_what_came_from_here_is_here_already(self, alice: DeltaMemory, said: Said) -> None:
        alice.put_messages([user("one"), assistant("two")])
        alice.put_messages([*alice.get(), user("three")])
        assert [text for _, text in said("alice")] == ["one", "two", "three"]

    def test_it_is_in_the_state_at_once(self, alice: DeltaMemory, engine: DeltaMemEngine) -> None:
        alice.put(user("My dog is called Rex."))
        assert engine.state("alice").tensor.norm() > 0

    def test_tool_calls_come_back_whole(self, alice: DeltaMemory) -> None:
        alice.put_messages([user("add"), CALL, ANSWER])
        _, call, answer = alice.get()
        assert call.blocks == CALL.blocks
        assert answer.additional_kwargs == {"tool_call_id": "c1", "name": "add"}
        assert answer.content == "3"

    def test_thoughts_are_not_said(self, alice: DeltaMemory, said: Said) -> None:
        alice.put(ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), TextBlock(text="yes")]))
        assert said("alice") == [("assistant", "yes")]

    def test_blocks_of_text_are_lines(self, alice: DeltaMemory, said: Said) -> None:
        alice.put(ChatMessage(role="user", blocks=[TextBlock(text="one"), TextBlock(text="two")]))
        assert said("alice") == [("user", "one\ntwo")]

    def test_copies_are_given_out(self, alice: DeltaMemory) -> None:
        """Agents rewrite what they get, in place."""
        alice.put(user("one"))
        block = alice.get()[0].blocks[0]
        assert isinstance(block, TextBlock)
        block.text = "two"
        assert spoken(alice.get()) == [("user", "one")]

    def test_the_question_of_an_engine_is_no_message(self, alice: DeltaMemory) -> None:
        assert alice.get(input="what?", initial_token_count=7) == []


class TestWindow:
    def test_it_moves_in_blocks(self, alice: DeltaMemory) -> None:
        sizes = []
        for number in range(20):
            alice.put(user(str(number)) if number % 2 == 0 else assistant(str(number)))
            sizes.append(len(alice.get()))
            assert alice.get()[-1].content == str(number)
        assert sizes[3:] == [4, 5, 6, 7] * 4 + [4]
        assert len(alice.get_all()) == 20

    def test_answers_stay_with_their_calls(self, engine: DeltaMemEngine) -> None:
        memory = DeltaMemory(engine=engine, session_id="tools", window=1)
        memory.put_messages([user("one"), assistant("two"), user("add")])
        memory.put_messages([CALL, ANSWER])
        assert [m.role.value for m in memory.get()] == ["user", "assistant", "tool"]  # nobody has replied yet
        memory.put(assistant("it is 3"))
        assert [m.role.value for m in memory.get()] == ["assistant"]

    def test_the_engine_s_own(self, engine: DeltaMemEngine) -> None:
        assert DeltaMemory(engine=engine, session_id="alice").window == engine.recent_messages


class TestSet:
    def test_a_replayed_history_is_nothing_new(self, alice: DeltaMemory, said: Said) -> None:
        history = [user("one"), assistant("two")]
        for text in ("three", "four"):
            alice.set(history)
            alice.set(history)
            assert said("alice") == spoken(history)
            history += [user(text), assistant(text + "!")]
        alice.set(history[-3:])
        assert said("alice") == spoken(history)

    @pytest.mark.parametrize("source", ["get", "get_all"])
    def test_its_own_messages(self, alice: DeltaMemory, said: Said, source: str) -> None:
        for number in range(12):
            alice.put(user(str(number)) if number % 2 == 0 else assistant(str(number)))
        alice.set([*getattr(alice, source)(), user("new")])
        assert [text for _, text in said("alice")] == [*map(str, range(12)), "new"]

    def test_what_is_left_out_is_not_unsaid(self, alice: DeltaMemory, said: Said) -> None:
        """Another tab may have said it; `rollback` unsays."""
        alice.put_messages([user("one"), assistant("two"), user("three"), assistant("four")])
        alice.set([user("one"), assistant("two")])
        assert len(said("alice")) == 4

    def test_an_empty_one_resets(self, alice: DeltaMemory, said: Said) -> None:
        alice.put(user("one"))
        alice.set([])
        assert alice.get() == []
        assert said("alice") == [("user", "one")]

    async def test_async(self, alice: DeltaMemory, said: Said) -> None:
        await alice.aset([user("one"), assistant("two")])
        await alice.aset([user("one"), assistant("two"), user("three")])
        assert len(said("alice")) == 3

    def test_system_prompts_are_kept_in_their_place(self, alice: DeltaMemory, llm: DeltaMemLLM) -> None:
        alice.set([ChatMessage(role="system", content="Be kind."), user("one")])
        assert spoken(alice.get()) == [("system", "Be kind."), ("user", "one")]
        alice.put(llm.chat(alice.get()).message)
        assert len(alice.get_all()) == 3

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_whatever_part_is_replayed_only_the_rest_is_new(self, data: st.DataObject) -> None:
        """A history whose messages differ, from any place on, with new messages behind it."""
        size = data.draw(st.integers(0, 12))
        known = [Message(role="assistant" if n % 2 else "user", content=str(n), id=f"id{n}") for n in range(size)]
        start = data.draw(st.integers(0, size))
        new = [Message(role="user", content=f"new {n}") for n in range(data.draw(st.integers(0, 3)))]
        stamped = data.draw(st.booleans())
        passed = [m if stamped else m.model_copy(update={"id": None}) for m in known[start:]]
        assert not_yet_said([*passed, *new], known) == new


class TestReset:
    def test_it_clears_the_window_and_keeps_the_state(self, alice: DeltaMemory, engine: DeltaMemEngine) -> None:
        alice.put_messages([user("My dog is called Rex."), assistant("Nice.")])
        before = engine.state("alice")
        alice.reset()
        assert alice.get() == alice.get_all() == []
        assert engine.state("alice").tensor.equal(before.tensor)
        alice.put(user("hello"))
        assert spoken(alice.get()) == [("user", "hello")]
        assert engine.session("alice").info.messages == 3

    def test_another_handle_goes_on_with_the_conversation_that_runs(
        self, alice: DeltaMemory, engine: DeltaMemEngine
    ) -> None:
        alice.put(user("one"))
        alice.reset()
        alice.put(user("two"))
        assert spoken(DeltaMemory(engine=engine, session_id="alice").get()) == [("user", "two")]

    async def test_forget_deletes_everything(self, alice: DeltaMemory, engine: DeltaMemEngine) -> None:
        await alice.aput(user("one"))
        alice.forget()
        await alice.aforget()  # nothing is left to forget
        assert engine.sessions() == []
        assert alice.get_all() == []
        alice.put(user("two"))
        assert spoken(alice.get_all()) == [("user", "two")]


class TestHandle:
    @pytest.mark.parametrize("way", ["to_dict", "to_json", "pickle", "deepcopy", "serializer", "model_dump"])
    def test_it_survives(self, alice: DeltaMemory, way: str) -> None:
        alice.reset()
        alice.put(user("one"))
        ways: dict[str, Any] = {
            "to_dict": lambda: DeltaMemory.from_dict(json.loads(json.dumps(alice.to_dict()))),
            "to_json": lambda: DeltaMemory.from_json(alice.to_json()),
            "pickle": lambda: pickle.loads(pickle.dumps(alice)),
            "deepcopy": lambda: copy.deepcopy(alice),
            "serializer": lambda: JsonSerializer().deserialize(JsonSerializer().serialize(alice)),
            "model_dump": lambda: DeltaMemory(**{k: v for k, v in alice.model_dump().items() if k != "class_name"}),
        }
        other = ways[way]()
        assert other == alice
        other.put(assistant("two"))
        assert spoken(alice.get()) == [("user", "one"), ("assistant", "two")]

    def test_messages_are_stamped(self, alice: DeltaMemory) -> None:
        alice.put(user("one"))
        message = alice.get()[0]
        assert isinstance(message, StampedMessage)
        assert (message.delta_session.session_id, message.delta_session.window) == ("alice", 4)
        assert ChatMessage.model_validate(message.model_dump()).content == "one"

    def test_from_defaults(self, engine: DeltaMemEngine) -> None:
        history = [user("one"), assistant("two")]
        for _ in range(2):
            memory = DeltaMemory.from_defaults(engine=engine, session_id="bob", chat_history=history, token_limit=9)
            assert spoken(memory.get_all()) == spoken(history)

    async def test_many_handles_at_once(self, engine: DeltaMemEngine, said: Said) -> None:
        """Each put is there once, whoever goes first."""
        handles = [DeltaMemory(engine=engine, session_id="alice") for _ in range(4)]
        await asyncio.gather(*(h.aput(user(f"{n} {k}")) for n, h in enumerate(handles) for k in range(3)))
        assert sorted(said("alice")) == sorted(("user", f"{n} {k}") for n in range(4) for k in range(3))
