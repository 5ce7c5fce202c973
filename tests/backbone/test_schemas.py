"""Schemas as generation is held to them: asked of the grammar itself, by what it lets pass."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from deltamem_agents.backbone.schemas import LARGEST, REACH, json_expression, schema_error, unenforced
from tests.backbone.test_patterns import DECIMAL
from tests.chat import byte_tokenizer

TOKENIZER = byte_tokenizer()
TABLE = from_tokenizer(TOKENIZER)
INFINITE = "1e999"
LONG = "1" + "0" * 400 + ".5"  # without an exponent, and infinite all the same
PART = {"type": "object", "properties": {"v": {}, "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}}}}


def passes(schema: dict[str, Any], text: str) -> bool:
    """Whether a whole reply may be this text."""
    assert not schema_error(schema, lenient=True)
    matcher = LLMatcher(TABLE, f"%llguidance {{}}\nstart: {json_expression(schema, lenient=True)}\n", log_level=0)
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


ANY = [
    ({"type": "object", "properties": {"v": {}}}, '{"v": N}'),
    ({"type": "object", "properties": {"v": True}}, '{"v": N}'),
    ({"type": "object", "properties": {"v": {"description": "whatever"}}}, '{"v": [{"a": N}]}'),
    ({"type": "object", "properties": {"v": {"minLength": 2}}}, '{"v": {"a": [N]}}'),
    ({"type": "object"}, '{"v": N}'),
    ({"type": "object", "additionalProperties": True}, '{"v": N}'),
    ({"type": "object", "patternProperties": {"^v": {}}}, '{"v": N}'),
    ({"type": "object", "properties": {"v": {}}, "patternProperties": {"^v": True}}, '{"v": N}'),
    ({"type": ["object", "null"]}, '{"v": N}'),
    ({"type": "array"}, "[N]"),
    ({"type": "array", "items": True}, "[[N]]"),
    ({"type": "array", "prefixItems": [{"type": "string"}]}, '["a", N]'),
    ({"type": "array", "items": [{"type": "string"}]}, '["a", N]'),
    ({"anyOf": [{"type": "string"}, {}]}, "N"),
    ({"allOf": [{"type": "object", "properties": {"a": {}}}, {"properties": {"v": {}}}]}, '{"v": N}'),
    ({"type": "object", "properties": {"a": {}, "v": {}}, "anyOf": [{"required": ["v"]}]}, '{"v": N}'),
    ({"$defs": {"Part": PART}, "$ref": "#/$defs/Part"}, '{"parts": [{"v": N}]}'),
    ({"$ref": "#/components/schemas/a%20b", "components": {"schemas": {"a b": {"type": "array"}}}}, "[N]"),
]


@pytest.mark.parametrize(("schema", "text"), ANY, ids=lambda value: value if isinstance(value, str) else "")
def test_wherever_any_json_may_stand_its_numbers_are_finite(schema: dict[str, Any], text: str) -> None:
    for number in ("0", "-12.5", str(LARGEST)):
        assert passes(schema, text.replace("N", number))
    for number in (INFINITE, LONG, f"-{INFINITE}"):
        assert not passes(schema, text.replace("N", number))
    assert passes(schema, text.replace("N", '[{"deep": ["down", null]}]'))


@pytest.mark.parametrize(
    ("schema", "lets_pass", "not_this"),
    [
        ({"type": "number"}, [str(LARGEST), "-0.5"], [INFINITE, LONG, str(LARGEST + 1)]),
        ({"type": "integer", "exclusiveMinimum": 0}, ["1", str(LARGEST)], ["0", str(LARGEST + 1)]),
        ({"type": ["number", "null"]}, ["null", "1"], [INFINITE]),
        ({"type": "number", "enum": [1, 1e300]}, ["1"], ["2"]),
        ({"type": "number", "multipleOf": 0.5}, ["1.5"], [LONG]),
        ({"type": "integer", "multipleOf": 5}, ["15"], ["1" + "0" * 400, "7"]),
        ({"type": "integer", "minimum": 10**17}, ["1" + "0" * 17], ["1" + "0" * 16]),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, ["-5", str(2**62)], [str(2**63)]),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, [str(10**18)], ["-1", str(10**20)]),
        ({"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4e38}, [str(REACH)], [INFINITE]),
    ],
    ids=str,
)
def test_limits_of_numbers(schema: dict[str, Any], lets_pass: list[str], not_this: list[str]) -> None:
    assert [text for text in lets_pass + not_this if passes(schema, text)] == lets_pass


def test_durations_are_such_as_python_has() -> None:
    schema = {"type": "string", "format": "duration"}
    assert passes(schema, '"P99999W"')
    assert not passes(schema, '"P1M66666666666666666666666D"')


def test_patterns_that_cannot_be_read() -> None:
    schema = {"type": "string", "pattern": DECIMAL}
    assert [text for text in ['"1.5"', '""', '"."', '"-3"', '"x"'] if passes(schema, text)] == ['"1.5"', '"-3"']
    assert unenforced(schema) == ()
    assert "look-around" in schema_error(schema, lenient=False)
    assert passes({"type": "string", "pattern": "(", "minLength": 2}, '"(("')
    assert not passes({"type": "string", "pattern": "(", "minLength": 2}, '"("')
    keyed = {"type": "object", "patternProperties": {"^x(?!y)": {"type": "integer"}}, "additionalProperties": False}
    assert passes(keyed, '{"xz": 1}')
    assert not passes(keyed, '{"xz": "a"}')
    assert unenforced(keyed) == ("names '^x(?!y)'",)


def test_a_schema_is_left_as_it_is_given() -> None:
    schema = {"type": "object", "properties": {"v": {}, "d": {"type": "string", "pattern": DECIMAL}}}
    before = json.dumps(schema)
    json_expression(schema, lenient=True)
    assert json.dumps(schema) == before
