"""Messages: what is accepted, and what is said about the rest."""

from datetime import date
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltamem_agents.errors import MessageError
from deltamem_agents.messages import Message, ToolCall, as_messages, check_tool_messages

roles, texts = st.sampled_from(["system", "user", "assistant", "tool"]), st.text("ab\"\\é🙂", max_size=4)


def calling(*calls: dict[str, object], **call: object) -> dict[str, object]:
    """An assistant's message with calls, and nothing said."""
    return {"role": "assistant", "content": None, "tool_calls": [{"name": "add", **one} for one in calls or (call,)]}


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
        ({"role": "user", "content": [{"type": "text"}]}, ".*part of type 'text' holds None, expected a text under"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, ".*part of type 'text' holds None"),
        ({"role": "user", "content": [{"type": "image_url"}]}, ".*part of type 'image_url': this is a text model"),
        ({"role": "tool", "content": [5]}, ".*part of type 'int': this is a text model"),
        ({"role": "user", "content": "x", "images": []}, "images: Extra inputs"),
        ({"role": "user", "content": "x", "tool_calls": [{"name": "add"}]}, ".*only an assistant calls tools"),
        ({"role": "user", "content": "x", "name": "Ann"}, ".*name on a message of the user: only a tool's message"),
        ({"role": "user", "content": "x", "tool_call_id": "1"}, ".*tool_call_id on a message of the user"),
        ({"role": "tool", "content": "x", "snapshot": "1"}, ".*snapshot on a message of the tool: only replies"),
        ({"role": "assistant"}, "content: Field required"),
        (calling(name=""), r"tool_calls\.0\.name: String should have at least 1"),
        (calling(arguments="{"), r"tool_calls\.0\.arguments: .*'{' is no JSON object"),
        (calling(arguments="[1]"), r"tool_calls\.0\.arguments: Input should be a valid dictionary"),
        (calling(arguments={"x": "\ud800"}), r"tool_calls\.0\.arguments: .*surrogates not allowed"),
        (calling(arguments={"x": object()}), r"tool_calls\.0\.arguments\.x: .*not a valid JSON value"),
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


def test_calls_come_in_our_style_and_in_that_of_openai() -> None:
    ours = calling(id="c", arguments={"a": [1, "é"]})
    function = {"name": "add", "arguments": '{"a": [1, "é"]}'}
    theirs = {"role": "assistant", "tool_calls": [{"type": "function", "id": "c", "function": function}]}
    for message in as_messages([ours, theirs]):
        assert message.content == ""
        assert message.tool_calls == (ToolCall(id="c", name="add", arguments={"a": [1, "é"]}),)


def test_a_call_without_an_id_gets_one_of_its_own() -> None:
    first, second = as_messages([calling({}, {})])[0].tool_calls
    assert first.id != second.id


def test_digests_of_plain_messages_are_what_they_were() -> None:
    """Ledgers in use hold them."""
    assert Message(role="user", content="hi").digest() == "0235981f325123e10b959946cb44e152"
    answer = Message(role="tool", content="hi")
    assert answer.model_copy(update={"tool_call_id": "a", "name": "add"}).digest() == answer.digest()


def test_digests_cover_names_and_arguments_of_calls_but_no_ids() -> None:
    def digest(*calls: dict[str, object], **more: object) -> str:
        return as_messages([{**calling(*calls), **more}])[0].digest()

    one = {"arguments": {"a": 1, "b": 2}}
    assert digest(one) == digest({"arguments": {"b": 2, "a": 1}, "id": "x"}, snapshot="s", id="m")
    others = [digest({"arguments": {"a": 1}}), digest({**one, "name": "sub"}), digest(one, one)]
    others.append(digest(one, content=" "))
    assert len({digest(one), *others, Message(role="assistant", content="").digest()}) == 6


def test_messages_survive_json() -> None:
    message = as_messages([calling(id="c", arguments={"a": None})])[0].model_copy(update={"snapshot": "s"})
    assert Message.model_validate_json(message.model_dump_json()) == message


def test_answers_follow_their_calls() -> None:
    call, first, second = as_messages(
        [
            calling({"id": "a"}, {"id": "b"}),
            {"role": "tool", "content": "1", "tool_call_id": "a"},
            {"role": "tool", "content": "2", "tool_call_id": "b", "name": "add"},
        ]
    )
    check_tool_messages([call, second, first])
    check_tool_messages([])
    with pytest.raises(MessageError, match=r"message 0 is a tool's answer with tool_call_id='a', .*\(calls: none\)"):
        check_tool_messages([first, call])
    with pytest.raises(MessageError, match=r"message 1 .*tool_call_id=None, .*\(calls: a, b\): keep"):
        check_tool_messages([call, Message(role="tool", content="3")])


def test_content_parts_are_read_as_openai_writes_them() -> None:
    parts = [{"type": "text", "text": "My name"}, {"type": "text", "text": "is Ann."}]
    (message,) = as_messages([{"role": "user", "content": parts}])
    assert message == Message(role="user", content="My name\nis Ann.")
    refusal = {"type": "refusal", "refusal": "No."}
    said = [{"type": "reasoning", "summary": []}, {"type": "output_text", "text": "Hi."}, refusal]
    assert as_messages([{"role": "assistant", "content": said}])[0].content == "Hi.\nNo."


def test_what_openais_client_dumps_is_taken() -> None:
    empty = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    dumped = [
        {"role": "user", "content": "hi", "name": None},
        {"role": "assistant", "content": "hello", **empty, "reasoning_content": "The user greets."},
        {"role": "assistant", "content": None, **empty, "refusal": "I can't."},
        {"role": "tool", "content": None, "tool_call_id": "a"},
    ]
    assert [m.content for m in as_messages(dumped)] == ["hi", "hello", "I can't.", ""]
    call = {"id": "a", "type": "function", "function": {"name": "now", "arguments": ""}}
    (called,) = as_messages([{"role": "assistant", "content": None, **empty, "tool_calls": [call]}])
    assert (called.content, called.tool_calls[0].arguments) == ("", {})


def test_old_calls_may_hold_what_json_has_no_form_for() -> None:
    """Only their rendering matters, and a history that holds one is not refused for ever."""
    when = {"day": date(2024, 1, 2), "x": float("nan"), "most": float("inf"), "deep": [{"x": float("-inf")}]}
    (message,) = as_messages([calling(arguments=when)])
    plain = {"day": "2024-01-02", "x": "NaN", "most": "Infinity", "deep": [{"x": "-Infinity"}]}
    assert message.tool_calls[0].arguments == plain
    assert as_messages([calling(arguments='{"x": NaN, "most": 1e999}')])[0].tool_calls[0].arguments == {
        "x": "NaN",
        "most": "Infinity",
    }
    assert Message.model_validate_json(message.model_dump_json()) == message


def test_two_calls_of_one_id_are_taken_as_they_come() -> None:
    (message,) = as_messages([calling({"id": "a"}, {"id": "a", "arguments": {"b": 1}})])
    assert [call.id for call in message.tool_calls] == ["a", "a"]
    check_tool_messages([message, Message(role="tool", content="1", tool_call_id="a")])


def test_an_over_long_message_says_where_it_was_cut() -> None:
    long = Message(role="tool", content="x" * 5000, cut=10)
    assert long.as_shown.content == "xxxxxxxxxx\n[cut here: 10 of 5,000 characters are shown]"
    assert long.digest() == Message(role="tool", content="x" * 5000).digest() != long.as_shown.digest()
    (call,) = as_messages([calling(arguments={"text": "abc" * 9, "n": 5, "more": ["d" * 9]})])
    cut = call.model_copy(update={"cut": 3}).as_shown.tool_calls[0].arguments
    assert cut == {
        "text": "abc\n[cut here: 3 of 27 characters are shown]",
        "n": 5,
        "more": ["ddd\n[cut here: 3 of 9 characters are shown]"],
    }
    assert call.as_shown == call
