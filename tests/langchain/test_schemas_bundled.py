"""The bundled model under random schemas: each forced call and each structured reply is valid."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from deltamem_agents import DeltaMemEngine, bundled_is_cached
from langchain_deltamem import ChatDeltaMem
from tests.schemas import Schema, random_object_schema

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model has not been fetched"),
]
COUNT, TOGETHER = 50, 10
TEXTS = ["Tell me about the weather.", "My name is Nora and I am 31.", "Write something down.", "What is in the box?"]


@pytest.fixture(scope="module")
def model() -> Iterator[ChatDeltaMem]:
    with DeltaMemEngine.bundled(store=":memory:") as engine:
        yield ChatDeltaMem(engine=engine, max_new_tokens=120)


def cases(seed: int) -> Iterator[list[tuple[str, Schema, dict[str, Any]]]]:
    """What is asked, by which schema, and how tokens are chosen; as many as decode together."""
    rng = random.Random(seed)
    for start in range(0, COUNT, TOGETHER):
        yield [
            (
                rng.choice(TEXTS),
                {"title": f"record_{start + number}", **random_object_schema(rng)},
                {"temperature": rng.choice([0.0, 1.0, 2.0]), "seed": start + number},
            )
            for number in range(TOGETHER)
        ]


async def test_forced_calls(model: ChatDeltaMem) -> None:
    """Of a tool by name, or, every other time, of either of two."""
    other: Schema = {"title": "nothing", "type": "object", "properties": {}}
    for some in cases(seed=0):
        bound = [
            model.bind_tools([schema, other], tool_choice=str(schema["title"]) if number % 2 else "any", **sampling)
            for number, (_, schema, sampling) in enumerate(some)
        ]
        asked = (one.ainvoke(text) for one, (text, _, _) in zip(bound, some, strict=True))
        for reply, (_, schema, _) in zip(await asyncio.gather(*asked), some, strict=True):
            (call,) = reply.tool_calls
            jsonschema.validate(call["args"], schema if call["name"] == schema["title"] else {"maxProperties": 0})


async def test_structured_output(model: ChatDeltaMem) -> None:
    for some in cases(seed=1):
        chains = [model.with_structured_output(schema, method="json_schema", **how) for _, schema, how in some]
        asked = (chain.ainvoke(text) for chain, (text, _, _) in zip(chains, some, strict=True))
        for reply, (_, schema, _) in zip(await asyncio.gather(*asked), some, strict=True):
            jsonschema.validate(reply, schema)
