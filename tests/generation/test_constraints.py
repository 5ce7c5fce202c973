"""Replies held to a format or to tools: whatever the model wants, what comes out can be parsed."""

import json
import re
import warnings
from collections.abc import Sequence

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents import ConfigError, DeltaMemModel, GenerationError, GenerationOptions
from deltamem_agents.backbone.calls import HERMES, CallSyntax
from deltamem_agents.backbone.tools import Tool, ToolUse
from deltamem_agents.generation import Lane, decode
from deltamem_agents.generation.constraints import constrain, reply_grammar
from deltamem_agents.generation.replies import CallGate
from deltamem_agents.messages import ToolCall
from tests.chat import VOCABULARY, byte_tokenizer, chat_model
from tests.generation.lanes import ENDS, LLAMA, OFF, lane, schema_format

ADD = Tool(
    name="add",
    parameters={
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": ["x", "ü"]}},
        "required": ["a"],
    },
)
SAY = Tool(
    name="say", parameters={"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
)
NOW = Tool(name="now")
TOOLS = (ADD, SAY, NOW)
JSON_OBJECT = {"type": "json_object"}


@pytest.fixture(scope="module")
def model() -> DeltaMemModel:
    return chat_model()


def test_any_json_object(model: DeltaMemModel) -> None:
    kinds = [{"temperature": 1.5, "seed": seed, "max_new_tokens": 40} for seed in range(8)]
    lanes = [lane(model, range(3, 9), response_format=JSON_OBJECT, **kind) for kind in kinds]
    decode(model, lanes, ENDS)
    read = [json.loads(one.stream.text) for one in lanes]
    assert all(isinstance(value, dict) for value in read)
    assert any(read)


@pytest.mark.parametrize("seed", range(4))
def test_regex_and_lark(model: DeltaMemModel, seed: int) -> None:
    options = {"temperature": 1.0, "seed": seed, "max_new_tokens": 60}
    one = lane(model, [5, 6], response_format={"type": "regex", "regex": r"[a-c/]{2,5}\/é[\n ]\d"}, **options)
    grammar = 'start: "(" start ")" | "[" NUMBER "]"\nNUMBER: /[0-9]{1,3}/'
    other = lane(model, [5, 6], response_format={"type": "lark", "grammar": grammar}, **options)
    decode(model, [one, other], ENDS)
    assert re.fullmatch(r"[a-c/]{2,5}/é[\n ]\d", one.stream.text)
    assert re.fullmatch(r"(\(*)\[\d{1,3}\](\)*)", other.stream.text)
    assert other.stream.text.count("(") == other.stream.text.count(")")
    assert (one.finish_reason, other.finish_reason) == ("stop", "stop")


@pytest.mark.parametrize("syntax", [HERMES, LLAMA])
@pytest.mark.parametrize("choice", ["required", "add", "say", "now"])
def test_forced_calls(model: DeltaMemModel, syntax: CallSyntax, choice: str) -> None:
    use = ToolUse.parse(TOOLS, choice)
    kinds: list[dict[str, object]] = [{}, *({"temperature": 2.0, "seed": seed} for seed in range(5))]
    lanes = [lane(model, [5, 6, 7], use, syntax, max_new_tokens=150, **kind) for kind in kinds]
    decode(model, lanes, ENDS)
    for one in lanes:
        content, calls = syntax.parse(one.stream.text, [tool.name for tool in TOOLS])
        assert content == ""
        assert [call.name for call in calls] == [choice if choice != "required" else calls[0].name]
        schema = next(tool.parameters for tool in TOOLS if tool.name == calls[0].name)
        jsonschema.validate(calls[0].arguments, {**schema, "additionalProperties": False})
        assert one.stream.text == syntax.text(calls)  # so that it renders as it was said


def consumed(text: str, use: ToolUse, syntax: CallSyntax = HERMES, **options: object) -> tuple[bool, bool] | None:
    """Whether a reply may and must stop after a text; None if the text is not allowed at all."""
    grammar = reply_grammar(GenerationOptions.parse(options).response_format, use, syntax)
    assert grammar is not None
    held = constrain(byte_tokenizer(), ENDS, grammar)
    for token in byte_tokenizer().encode(text, add_special_tokens=False):
        if held.mask(torch.zeros(VOCABULARY))[token] < 0:
            return None
        assert held.take(token, room=1000) == token
    return held.may_stop, held.must_stop


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 5}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (True, False)),
        ("Hello <b>you</b>\n{}\n", (True, False)),
        ("Hello <tool_ca", (True, False)),
        ("Hello <tool_call>", (False, False)),
        ("Hello <tool_call> ", None),
        ('<tool_call>\n{"name": "sub', None),
        ('<tool_call>\n{"name": "add", "arguments": {"b"', None),
        (f"{CALL}", (True, False)),
        (f"Let me see.\n{CALL}\n{CALL}", (True, False)),
        (f"{CALL} ok", None),
        ("a<|im_start|>", None),
    ],
)
def test_where_the_model_decides_only_an_opened_call_is_held_to_anything(text: str, expected: object) -> None:
    assert consumed(text, ToolUse.parse(TOOLS)) == expected


def test_one_call_where_calls_are_not_to_come_together() -> None:
    assert consumed(f"Hm. {CALL}", ToolUse.parse(TOOLS, parallel=False)) == (True, True)
    assert consumed(f"Hm. {CALL}\n", ToolUse.parse(TOOLS, parallel=False)) is None
    assert consumed('Hm. {"name": "now", "parameters": {}}', ToolUse.parse(TOOLS), LLAMA) == (True, True)
    assert consumed('Hm. {"name": "no', ToolUse.parse([ADD]), LLAMA) is None


def test_a_format_and_tools_together() -> None:
    """An agent's last reply has the format; the ones before it call tools."""
    format = schema_format({"type": "object", "properties": {"done": {"type": "boolean"}}, "required": ["done"]})
    use = ToolUse.parse(TOOLS)
    assert consumed('{"done": true}', use, response_format=format) == (True, True)
    assert consumed(CALL, use, response_format=format) == (True, False)
    assert consumed("Hello", use, response_format=format) is None
    assert consumed('{"done"', ToolUse.parse(TOOLS, "required"), response_format=format) is None
    with pytest.raises(ConfigError, match="calls are bare JSON"):
        consumed("", use, LLAMA, response_format=format)


def test_no_tools_no_format_no_constraint() -> None:
    assert reply_grammar(None, OFF, HERMES) is None
    assert reply_grammar(None, ToolUse.parse(TOOLS, "none"), HERMES) is None


def test_what_a_schema_does_not_name_is_not_made_up() -> None:
    plain: dict[str, object] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert consumed('{"a": 1, "b"', OFF, response_format=schema_format(plain)) is None
    for schema in ({**plain, "additionalProperties": True}, {"type": "object"}):
        assert consumed('{"a": 1, "b": 2}', OFF, response_format=schema_format(schema)) == (True, True)
    both = {"allOf": [plain, {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}]}
    assert consumed('{"a": 1, "b": 2}', OFF, response_format=schema_format(both)) == (True, True)


@pytest.mark.parametrize(
    ("format", "words"),
    [
        ("json", "response_format: "),
        ({"type": "xml"}, "response_format: .*'json_object', 'json_schema', 'regex', 'lark'"),
        ({"type": "json_schema"}, r"response_format\.json_schema\.json_schema: Field required"),
        (schema_format({"type": "strin"}), "Invalid type: strin"),
        (schema_format({"type": "array", "uniqueItems": True}, strict=True), "Unimplemented keys: .*uniqueItems"),
        (schema_format({"type": "string", "minLength": 3, "maxLength": 1}), "Unsatisfiable schema"),
        ({"type": "regex", "regex": "(?=a)b"}, "look-around"),
        ({"type": "regex", "regex": "["}, "unclosed character class"),
        ({"type": "lark", "grammar": 'start: "a" other'}, 'unknown name: "other"'),
        ({"type": "lark", "grammar": 'a: "a"'}, "start"),
    ],
)
def test_bad_formats_are_named(format: object, words: str) -> None:
    with pytest.raises(GenerationError, match=rf"(?s)^bad generation options \(.*{words}"):
        GenerationOptions.parse({"response_format": format})


def test_what_cannot_be_enforced_is_said_once_or_refused() -> None:
    schema: dict[str, object] = {"type": "array", "items": {"pattern": "^a(?!b)"}, "uniqueItems": True}
    with pytest.warns(UserWarning, match=r"(?s)format 'numbers'.*pattern '\^a\(\?!b\)'.*uniqueItems"):
        GenerationOptions.parse({"response_format": schema_format(schema, name="numbers")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GenerationOptions.parse({"response_format": schema_format(schema, name="numbers")})
        GenerationOptions.parse({"response_format": schema_format(schema, name="others", strict=False)})
    with pytest.raises(GenerationError, match="uniqueItems"):
        GenerationOptions.parse({"response_format": schema_format(schema, strict=True)})
    assert GenerationOptions.parse({"response_format": {"type": "text"}}).response_format is None


def test_grammars_that_cannot_be_used() -> None:
    with pytest.raises(ConfigError, match=r"cannot be held to its format or tools: .*nothing"):
        constrain(byte_tokenizer(), ENDS, "%llguidance {}\nstart: nothing")


@pytest.mark.parametrize("padding", [0, 1, 64, 700])
def test_ids_without_a_token_are_never_allowed(padding: int) -> None:
    held = constrain(byte_tokenizer(), ENDS, '%llguidance {}\nstart: "a"')
    logits = torch.zeros(VOCABULARY + padding)
    masked = held.mask(logits)
    a = byte_tokenizer().convert_tokens_to_ids("a")
    assert masked.isfinite().nonzero().flatten().tolist() == [a]
    assert not logits.any()
    held.take(a, room=5)
    assert held.may_stop
    assert held.must_stop
    assert held.mask(logits).isfinite().nonzero().flatten().tolist() == list(ENDS)


def test_a_vocabulary_that_the_model_cuts_short() -> None:
    held = constrain(byte_tokenizer(), ENDS, "%llguidance {}\nstart: /.*/")
    assert held.mask(torch.zeros(100)).shape == (100,)


@pytest.mark.parametrize("most", [6, 12, 20, 40, 90])
def test_json_is_brought_to_its_end_before_the_tokens_run_out(model: DeltaMemModel, most: int) -> None:
    schema = {"type": "array", "items": {"type": "string", "minLength": 2}, "minItems": 1}
    lanes = [
        lane(model, [5, 6], temperature=1.0, seed=seed, max_new_tokens=most, response_format=schema_format(schema))
        for seed in range(6)
    ]
    decode(model, lanes, ENDS)
    for one in lanes:
        jsonschema.validate(json.loads(one.stream.text), schema)
        assert len(one.stream.ids) <= most
        assert one.constraint is not None
        assert one.finish_reason == ("length" if one.constraint.cut_short else "stop")
    assert any(one.finish_reason == "length" for one in lanes)


@pytest.mark.parametrize("pattern", ["x", "foo", r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$", r"\.(jpg|png)$", '"$'])
@pytest.mark.parametrize("seed", range(3))
def test_a_string_without_an_end_of_its_own_is_ended_by_its_pattern(
    model: DeltaMemModel, pattern: str, seed: int
) -> None:
    """Whatever is said first, the string could go on for ever: what it still needs must be found."""
    schema: dict[str, object] = {"type": "string", "pattern": pattern}
    one = lane(model, [5, 6], temperature=1.0, seed=seed, max_new_tokens=80, response_format=schema_format(schema))
    decode(model, [one], ENDS)
    jsonschema.validate(json.loads(one.stream.text), schema)


def test_no_call_is_opened_that_cannot_be_ended() -> None:
    """The second of two calls is left out when there is no room for it."""
    call = HERMES.text([ToolCall(name="now")])
    held = constrain(byte_tokenizer(), ENDS, reply_grammar(None, ToolUse.parse([NOW]), HERMES) or "")
    ids = byte_tokenizer().encode(f"{call}\n{call}", add_special_tokens=False)
    first = len(byte_tokenizer().encode(call, add_special_tokens=False))
    room = first + 20
    taken = []
    for token in ids:
        if (took := held.take(token, room=room - len(taken))) is None:
            break
        taken.append(took)
    assert byte_tokenizer().decode(taken) == call
    assert held.cut_short
    assert held.may_stop


def test_without_room_for_anything_the_reply_is_what_it_is(model: DeltaMemModel) -> None:
    one = lane(model, [5, 6], ToolUse.parse(TOOLS, "say"), max_new_tokens=10)
    decode(model, [one], ENDS)
    assert (one.finish_reason, len(one.stream.ids)) == ("length", 10)
    assert HERMES.parse(one.stream.text, ["say"]) == (one.stream.text, ())


def test_lanes_with_and_without_constraints_together_are_what_each_is_alone(model: DeltaMemModel) -> None:
    def lanes() -> list[Lane]:
        return [
            lane(model, [5, 6, 7, 8], max_new_tokens=30),
            lane(model, [9] * 20, ToolUse.parse(TOOLS, "add"), max_new_tokens=120),
            lane(model, [50, 60], ToolUse.parse(TOOLS), max_new_tokens=30),
            lane(model, range(3, 30), max_new_tokens=50, seed=3, temperature=1, response_format=JSON_OBJECT),
        ]

    together, alone = lanes(), lanes()
    decode(model, together, ENDS)
    for one in alone:
        decode(model, [one], ENDS)
    assert [one.stream.ids for one in together] == [one.stream.ids for one in alone]
    assert [one.finish_reason for one in together] == [one.finish_reason for one in alone]
    assert together[0].row.ids == (5, 6, 7, 8, *together[0].stream.ids[:-1])


def test_a_free_reply_with_tools_is_the_reply_without_them(model: DeltaMemModel) -> None:
    """As long as it has no special tokens in it, which text cannot hold, and opens no call."""
    free, held = (lane(model, [5, 6, 7, 8], use, max_new_tokens=40) for use in (OFF, ToolUse.parse(TOOLS)))
    decode(model, [free, held], ENDS)
    assert held.stream.text == free.stream.text


def test_pieces_of_a_forced_call_make_up_its_text(model: DeltaMemModel) -> None:
    one = lane(model, [5, 6], ToolUse.parse(TOOLS, "say"), max_new_tokens=110, temperature=1.0, seed=1)
    pieces = list[str]()
    one.emit = pieces.append
    decode(model, [one], ENDS)
    assert "".join(pieces) == one.stream.text
    assert len(pieces) > 20


# --- what a reader sees


def shown(reply: str, cuts: Sequence[int], content: str) -> list[str]:
    pieces = list[str]()
    gate = CallGate(HERMES.trigger, pieces.append)
    for start, end in zip([0, *cuts], [*cuts, len(reply)], strict=True):
        gate.push(reply[start:end])
    assert content.startswith("".join(pieces))
    gate.finish(content)
    return pieces


@given(st.lists(st.sampled_from(["a ", "\n", "<", "<tool_", CALL, f"{CALL}\n{CALL}"]), max_size=5), st.data())
def test_a_reader_sees_the_content_and_no_call(parts: list[str], data: st.DataObject) -> None:
    reply = "".join(parts)
    content, _ = HERMES.parse(reply, ["add"])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(reply)), max_size=5)))
    assert "".join(shown(reply, cuts, content)) == content


def test_text_comes_before_the_reply_is_over() -> None:
    assert shown(f"Let me see. {CALL}", [4, 8, 11, 14, 20], "Let me see.") == ["Let", " me s", "ee."]
