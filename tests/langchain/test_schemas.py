"""Schemas that others' conversions lose something of: what is replied is valid by the schema as it was given."""

import warnings
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Generic, TypeVar

import pytest
from jsonschema import validate
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.tools import StructuredTool, tool
from pydantic import BaseModel, Field, TypeAdapter, create_model
from typing_extensions import TypedDict

from deltamem_agents import ConfigError, DeltaMemEngine, GenerationError
from langchain_deltamem import ChatDeltaMem
from langchain_deltamem.tools import engine_tools

METHODS = ["function_calling", "json_schema", "json_mode"]
LOOKS_AHEAD = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"  # pydantic 2.12 and 2.13 write this for Decimal
T = TypeVar("T")


class Dossier(BaseModel):
    """A person and whom they know."""

    name: str = Field(max_length=4)
    friends: list["Dossier"] = Field(max_length=2)


class Case(BaseModel):
    """Has a dossier inside."""

    about: Dossier


@dataclass
class Part:
    """Of parts."""

    size: int
    parts: "list[Part]"


class Leaf(TypedDict):
    """Of a tree."""

    size: int
    leaves: "list[Leaf]"


class Gen(BaseModel, Generic[T]):
    """Holds something."""

    value: T


MCP = {"name": "file", "description": "Files it.", "inputSchema": Dossier.model_json_schema()}


@tool
def file(about: Dossier, days: int = 1) -> str:
    """Files a dossier."""
    return f"{about.name} {days}"


def put_away(about: Dossier) -> str:
    """Puts it away."""
    return about.name


@pytest.fixture
def talkers(engine: DeltaMemEngine) -> list[ChatDeltaMem]:
    return [ChatDeltaMem(engine=engine, max_new_tokens=170, temperature=1.0, seed=seed) for seed in range(2)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [Dossier, Case, Part, Leaf, Dossier.model_json_schema()], ids=lambda s: str(s)[:20])
def test_schemas_that_refer_to_themselves(talkers: list[ChatDeltaMem], method: Any, schema: Any) -> None:
    for talker in talkers:
        reply: Any = talker.with_structured_output(schema, method=method).invoke("hello")
        if isinstance(schema, dict):
            validate(reply, schema)
        else:
            TypeAdapter(schema).validate_python(reply)


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        (Dossier, Dossier),
        (file, file.get_input_schema()),
        (put_away, create_model("PutAway", about=(Dossier, ...))),
        (MCP, Dossier),
        (StructuredTool(name="mcp", description="x", args_schema=Dossier.model_json_schema(), func=print), Dossier),
        ({"type": "function", "function": {"name": "f", "parameters": Case.model_json_schema()}}, Case),
        ({"name": "f", "input_schema": Dossier.model_json_schema()}, Dossier),
    ],
    ids=["class", "tool", "function", "MCP", "MCP tool", "OpenAI", "Anthropic"],
)
def test_tools_that_refer_to_themselves(talkers: list[ChatDeltaMem], given: Any, schema: type[BaseModel]) -> None:
    for talker in talkers:
        (call,) = talker.bind_tools([given], tool_choice="any").invoke("hello").tool_calls
        schema.model_validate(call["args"])


def test_strict_reaches_what_is_referred_to() -> None:
    class Box(BaseModel):
        size: int = 1
        boxes: "list[Box]" = []

    (found,) = engine_tools([Box], strict=True)
    function: Any = found["function"]
    for schema in (function["parameters"], function["parameters"]["$defs"]["Box"]):
        assert schema["required"] == ["size", "boxes"]
        assert schema["additionalProperties"] is False


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_agents_reply_by_them(talkers: list[ChatDeltaMem], strategy: Any) -> None:
    agent = create_agent(talkers[0], response_format=strategy(Dossier))
    assert isinstance(agent.invoke({"messages": [("user", "hello")]})["structured_response"], Dossier)


class TestPatterns:
    """That the grammar engine cannot read."""

    amount: ClassVar[Any] = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": LOOKS_AHEAD}]}
    unreadable: ClassVar[Any] = {"type": "string", "pattern": r"^(a|b)\1$", "maxLength": 5}

    def schema(self, title: str, **properties: object) -> dict[str, Any]:
        return {"title": title, "type": "object", "properties": properties, "required": list(properties)}

    @pytest.mark.parametrize("method", METHODS)
    def test_decimals(self, talkers: list[ChatDeltaMem], method: Any) -> None:
        for talker in talkers:
            reply = talker.with_structured_output(self.schema("price", amount=self.amount), method=method).invoke("hi")
            assert isinstance(reply, dict)
            Decimal(reply["amount"])

    @pytest.mark.parametrize("method", METHODS[:2])
    def test_said_once_or_refused(self, talkers: list[ChatDeltaMem], method: Any) -> None:
        schema = self.schema(f"by_{method}", code=self.unreadable)
        with pytest.warns(UserWarning, match=rf"'by_{method}'.*pattern"):
            chain = talkers[0].with_structured_output(schema, method=method)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reply: Any = chain.invoke("hi")
        assert len(reply["code"]) <= 5
        with pytest.raises((ConfigError, GenerationError), match=r"backreferences|pattern"):
            talkers[0].with_structured_output(schema, method=method, strict=True)

    def test_of_a_tool(self, talkers: list[ChatDeltaMem]) -> None:
        described = self.schema("coder", code=self.unreadable)
        with pytest.warns(UserWarning, match=r"tool 'coder'.*pattern"):
            talkers[0].bind_tools([described])
        with pytest.raises(ConfigError, match="strict, but calls cannot be held to pattern"):
            talkers[0].bind_tools([described], strict=True)


def test_any_json_is_finite(talkers: list[ChatDeltaMem]) -> None:
    tool: Any = {"name": "keep", "parameters": {"type": "object", "properties": {"v": {}}, "required": ["v"]}}
    for talker in talkers:
        reply = talker.bind_tools([tool], tool_choice="any").invoke("hello")
        assert [call["name"] for call in reply.tool_calls] == ["keep"]
        assert reply.invalid_tool_calls == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("title", ["Gen[bool]", "two words", "Досье", '"quoted"', "x" * 200])
def test_a_class_may_be_called_what_no_tool_can(talkers: list[ChatDeltaMem], method: Any, title: str) -> None:
    made = create_model(title, value=(bool, ...))
    titled: Any = {**made.model_json_schema(), "title": title}
    as_object, as_dict = (talkers[0].with_structured_output(one, method=method) for one in (made, titled))
    assert isinstance(list(as_object.stream("hello"))[-1], made)
    reply: Any = as_dict.invoke("hello")
    assert isinstance(reply["value"], bool)


def test_a_generic_class(talkers: list[ChatDeltaMem]) -> None:
    assert isinstance(talkers[0].with_structured_output(Gen[bool]).invoke("hello"), Gen)
