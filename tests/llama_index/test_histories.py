"""Histories that other LLMs left behind: what they said is kept, what they did is passed over, and calls stay calls."""

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from pydantic import BaseModel

from deltamem_agents import DeltaMemEngine, MessageError, SessionError
from llama_index_deltamem import DeltaMemLLM, DeltaMemory, DeltaMemoryBlock
from llama_index_deltamem.messages import to_engine
from tests.llama_index.lines import Said, assistant, user

IMAGE = ImageBlock(image=b"aGk=")
CITATION = CitationBlock(cited_content=TextBlock(text="Dogs bark."), source="a", title="b", additional_location_info={})


class OpenAICall(BaseModel):
    """As OpenAI's client has it."""

    id: str = "1"
    function: Any = SimpleNamespace(name="look_up", arguments='{"word": "dog"}')
    type: str = "function"


CALLS: list[Any] = [
    OpenAICall(),
    {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "dog"}'}},
    {"id": "1", "type": "tool_use", "name": "look_up", "input": {"word": "dog"}},
    {"toolUseId": "1", "name": "look_up", "input": {"word": "dog"}},
    {"tool_id": "1", "tool_name": "look_up", "tool_kwargs": {"word": "dog"}},
]


def history(call: Any) -> list[ChatMessage]:
    return [
        user("What is a dog?"),
        ChatMessage(role="assistant", blocks=[], additional_kwargs={"tool_calls": [call]}),
        ChatMessage(role="tool", content="An animal.", additional_kwargs={"tool_call_id": "1"}),
        assistant("An animal."),
    ]


class TestCalls:
    @pytest.mark.parametrize("call", CALLS, ids=["OpenAI", "dict", "Anthropic", "Bedrock", "LlamaIndex"])
    def test_in_additional_kwargs(
        self, llm: DeltaMemLLM, alice: DeltaMemory, engine: DeltaMemEngine, call: Any
    ) -> None:
        (made,) = to_engine(history(call))[1].tool_calls
        assert (made.name, made.arguments, made.id) == ("look_up", {"word": "dog"}, "1")
        assert to_engine(history(call), whole=True)[2].name == "look_up"
        llm.chat([*history(call), user("And a cat?")])
        alice.set(history(call))
        blocks = [block for message in alice.get_all() for block in message.blocks if isinstance(block, ToolCallBlock)]
        assert [(block.tool_name, block.tool_kwargs) for block in blocks] == [("look_up", {"word": "dog"})]

    @pytest.mark.parametrize(
        ("given", "read"),
        [
            ("", {}),
            (" ", {}),
            ('{"a": 1}', {"a": 1}),
            ('{"a": ', {"text": '{"a": '}),
            ("[1]", {"value": [1]}),
            ({}, {}),
        ],
    )
    def test_arguments_that_are_no_object(self, given: Any, read: dict[str, Any]) -> None:
        """Only their rendering matters: the conversation is long past them."""
        block = ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs=given)
        (converted,) = to_engine([ChatMessage(role="assistant", blocks=[block])])
        assert converted.tool_calls[0].arguments == read

    @pytest.mark.parametrize("kept", [None, "text", [None], [{"index": 0}], [7]])
    def test_what_is_no_call(self, kept: Any) -> None:
        message = ChatMessage(role="assistant", content="Hm.", additional_kwargs={"tool_calls": kept})
        assert to_engine([message])[0].tool_calls == ()

    def test_blocks_say_it_first(self) -> None:
        block = ToolCallBlock(tool_call_id="1", tool_name="look_up", tool_kwargs={})
        message = ChatMessage(role="assistant", blocks=[block], additional_kwargs={"tool_calls": CALLS[:1]})
        assert len(to_engine([message])[0].tool_calls) == 1


class TestBlocks:
    @pytest.mark.parametrize(
        "block",
        [
            CITATION,
            IMAGE,
            DocumentBlock(data=b"x"),
            ThinkingBlock(content="Hm."),
            CachePoint(cache_control={"type": "ephemeral"}),
        ],
        ids=lambda b: type(b).__name__,
    )
    def test_what_another_model_did_is_passed_over(
        self, llm: DeltaMemLLM, alice: DeltaMemory, said: Said, block: Any
    ) -> None:
        reply = ChatMessage(role="assistant", blocks=[TextBlock(text="They bark."), block])
        llm.chat([user("Dogs?"), reply, user("Why?")])
        alice.put_messages([user("Dogs?"), reply])
        assert said("alice") == [("user", "Dogs?"), ("assistant", "They bark.")]

    def test_what_the_user_sent_before_leaves_its_words(self) -> None:
        shown = ChatMessage(role="user", blocks=[TextBlock(text="What is this?"), IMAGE])
        assert to_engine([shown, assistant("A dog."), user("Sure?")])[0].content == "What is this?"
        with pytest.raises(MessageError, match=r"message 2 \(user\) holds a ImageBlock"):
            to_engine([shown, assistant("A dog."), shown])

    def test_what_can_be_cited_is_read(self) -> None:
        source = CitableBlock(title="t", source="s", content=[TextBlock(text="Dogs bark.")])
        assert to_engine([ChatMessage(role="user", blocks=[source])])[0].content == "Dogs bark."
        with pytest.raises(MessageError, match="ImageBlock"):
            to_engine([ChatMessage(role="user", blocks=[source.model_copy(update={"content": [IMAGE]})])])


@pytest.mark.parametrize("name", [42, UUID(int=7)])
def test_sessions_named_by_numbers(engine: DeltaMemEngine, llm: DeltaMemLLM, name: Any) -> None:
    memory = DeltaMemory(engine=engine, session_id=name)
    memory.put(user("hello"))
    assert memory.session_id == str(name)
    assert DeltaMemoryBlock(engine=engine, session_id=name).session_id == str(name)
    for reply in (llm.chat([user("hi")], session_id=name), llm.with_session(name).chat([user("hi")])):
        assert reply.raw["session"] == str(name)  # type: ignore[index]
    assert DeltaMemLLM(engine=engine, session_id=name).session_id == str(name)
    with pytest.raises(SessionError):
        DeltaMemory(engine=engine, session_id=True)
