"""Whatever the schema and however the tokens are chosen: what comes out is valid."""

import json
import random
from collections.abc import Iterator

import jsonschema
import pytest

from deltamem_agents import DeltaMemModel
from deltamem_agents.backbone.calls import HERMES
from deltamem_agents.backbone.tools import ToolUse
from deltamem_agents.generation import decode
from tests.chat import VOCABULARY, chat_model
from tests.generation.lanes import ENDS, LLAMA, lane, schema_format
from tests.schemas import random_object_schema

TOGETHER = 20
COUNTS = [40, pytest.param(1000, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def model() -> DeltaMemModel:
    return chat_model()


def rounds(count: int, rng: random.Random) -> Iterator[list[tuple[list[int], dict[str, object]]]]:
    """Random prompts and ways to sample, as many together as decode together."""
    for start in range(0, count, TOGETHER):
        yield [
            (
                [rng.randint(3, VOCABULARY - 1) for _ in range(8)],
                {
                    "temperature": rng.choice([None, 1.0, 3.0]),
                    "top_p": rng.choice([None, 0.9]),
                    "seed": rng.randint(0, 9999),
                },
            )
            for _ in range(min(TOGETHER, count - start))
        ]


@pytest.mark.parametrize("count", COUNTS)
def test_structured_replies(model: DeltaMemModel, count: int) -> None:
    rng = random.Random(0)
    for cases in rounds(count, rng):
        schemas = [random_object_schema(rng) for _ in cases]
        lanes = [
            lane(model, prompt, max_new_tokens=320, response_format=schema_format(schema), **sampling)
            for schema, (prompt, sampling) in zip(schemas, cases, strict=True)
        ]
        decode(model, lanes, ENDS)
        for schema, one in zip(schemas, lanes, strict=True):
            jsonschema.validate(json.loads(one.stream.text), schema)


@pytest.mark.parametrize(
    "format", [{"type": "json_object"}, schema_format({"type": "object", "properties": {"v": {}}, "required": ["v"]})]
)
def test_any_json_is_finite(model: DeltaMemModel, format: dict[str, object]) -> None:
    rng = random.Random(2)
    ((_, *cases),) = rounds(TOGETHER, rng)
    lanes = [lane(model, prompt, max_new_tokens=120, response_format=format, **sampling) for prompt, sampling in cases]
    decode(model, lanes, ENDS)
    read = [json.loads(one.stream.text) for one in lanes]
    assert all(json.dumps(value, allow_nan=False) for value in read)
    assert any(isinstance(number, int | float) for value in read for number in value.values())


@pytest.mark.parametrize("count", COUNTS)
def test_forced_calls(model: DeltaMemModel, count: int) -> None:
    """Of any of three tools, or of one by name, in two syntaxes."""
    rng = random.Random(1)
    names = ["look_up", "store", "reset"]
    for cases in rounds(count, rng):
        tools = [{name: random_object_schema(rng) for name in names} for _ in cases]
        choices = [rng.choice(["required", *names]) for _ in cases]
        syntaxes = [rng.choice([HERMES, LLAMA]) for _ in cases]
        lanes = [
            lane(
                model,
                prompt,
                ToolUse.parse([{"name": name, "parameters": schema} for name, schema in schemas.items()], choice),
                syntax,
                max_new_tokens=400,
                **sampling,
            )
            for schemas, choice, syntax, (prompt, sampling) in zip(tools, choices, syntaxes, cases, strict=True)
        ]
        decode(model, lanes, ENDS)
        for schemas, choice, syntax, one in zip(tools, choices, syntaxes, lanes, strict=True):
            content, (call,) = syntax.parse(one.stream.text, names)
            assert content == ""
            assert choice in ("required", call.name)
            jsonschema.validate(call.arguments, schemas[call.name])
