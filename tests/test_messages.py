"""Messages: what is accepted, and what is said about the rest."""

from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltamem_agents.errors import MessageError
from deltamem_agents.messages import Message, as_messages

roles, texts = st.sampled_from(["system", "user", "assistant", "tool"]), st.text("ab\"\\é🙂", max_size=4)


def test_mappings_and_messages_mix() -> None:
    one = Message(role="user", content="hi", id="a")
    two = {"role": "assistant", "content": ""}
    assert as_messages([one, two, MappingProxyType(two)]) == [one, *[Message(role="assistant", content="")] * 2]
    assert as_messages((one,)) == [one]


@pytest.mark.parametrize("single", ["hi", {"role": "user", "content": "hi"}, Message(role="user", content="hi")])
def test_one_message_is_not_a_sequence(single: object) -> None:
    with pytest.raises(MessageError, match=f"sequence of messages, got a single {type(single).__name__}: wrap it"):
        as_messages(single)


@pytest.mark.parametrize("other", [None, 5])
def test_other_things_are_no_sequence_either(other: object) -> None:
    with pytest.raises(MessageError, match=f"sequence of messages, got {type(other).__name__}"):
        as_messages(other)


def test_none_at_all() -> None:
    with pytest.raises(MessageError, match="empty: give at least one"):
        as_messages([])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "robot", "content": "x"}, "role: Input should be 'system', 'user', 'assistant' or 'tool'"),
        ({"role": "user"}, "content: Field required"),
        ({"content": "x"}, "role: Field required"),
        ({"role": "user", "content": None}, "content: Input should be a valid string"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "content: Input should be a valid string"),
        ({"role": "user", "content": "x", "tool_calls": []}, "tool_calls: Extra inputs"),
        ({"role": "user", "content": "\ud800"}, "content: .*not Unicode text, surrogates not allowed"),
        ({"role": "user", "content": "x", "id": "\udfff"}, "id: .*not Unicode text, surrogates not allowed"),
        ("hi", "message: "),
        (None, "message: "),
    ],
)
def test_the_wrong_message_is_named_by_position(message: object, words: str) -> None:
    with pytest.raises(MessageError, match=rf"^message 1 is not valid \({words}.*expected .*'content': text"):
        as_messages([{"role": "user", "content": "fine"}, message])


@given(roles, texts, roles, texts)
def test_digests_tell_messages_apart(role: str, content: str, other_role: str, other: str) -> None:
    one, two = Message(role=role, content=content), Message(role=other_role, content=other)
    assert (one.digest() == two.digest()) == ((role, content) == (other_role, other))
    assert one.digest() == Message(role=role, content=content, id="named").digest()


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Message(role="user", content="hi").content = "bye"
