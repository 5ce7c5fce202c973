"""Structured output: every reply is an object of the schema, by every method, class and call."""

from typing import Annotated, Any, Literal, TypedDict

import pytest
from jsonschema import validate
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import BaseModel, Field, field_validator

from deltamem_agents import ConfigError, DeltaMemEngine, GenerationError
from langchain_deltamem import ChatDeltaMem
from tests.langchain.conftest import Said

METHODS = ["function_calling", "json_schema", "json_mode"]


class Paw(BaseModel):
    side: Literal["left", "right"]


class Dog(BaseModel):
    """A dog."""

    name: str = Field(max_length=6, description="what it is called")
    age: int = Field(ge=0, le=30)
    paws: list[Paw] = Field(max_length=2)
    tail: bool | None = None


class DogDict(TypedDict):
    """A dog."""

    name: Annotated[str, ..., "what it is called"]
    age: Annotated[int, ..., "years"]


@pytest.fixture
def talker(engine: DeltaMemEngine) -> ChatDeltaMem:
    return ChatDeltaMem(engine=engine, max_new_tokens=200)


@pytest.mark.parametrize("method", METHODS)
class TestMethods:
    async def test_a_class_gives_its_objects(self, talker: ChatDeltaMem, method: Any) -> None:
        chain = talker.with_structured_output(Dog, method=method)
        replies = [chain.invoke("hello"), await chain.ainvoke("hello"), *chain.batch(["hello"])]
        replies += [list(chain.stream("hello"))[-1], [chunk async for chunk in chain.astream("hello")][-1]]
        assert all(isinstance(reply, Dog) for reply in replies)
        assert all(reply == replies[0] for reply in replies)

    @pytest.mark.parametrize("schema", [DogDict, Dog.model_json_schema()], ids=["TypedDict", "JSON schema"])
    def test_other_schemas_give_dicts(self, talker: ChatDeltaMem, method: Any, schema: Any) -> None:
        chain = talker.with_structured_output(schema, method=method)
        for reply in (chain.invoke("hello"), list(chain.stream("hello"))[-1]):
            assert isinstance(reply, dict)
            validate(reply, convert_to_json_schema(schema))

    def test_include_raw(self, talker: ChatDeltaMem, method: Any) -> None:
        reply: Any = talker.with_structured_output(Dog, method=method, include_raw=True).invoke("hello")
        assert isinstance(reply["parsed"], Dog)
        assert reply["parsing_error"] is None
        assert reply["raw"].usage_metadata["output_tokens"] > 0

    @pytest.mark.parametrize("strict", [None, True, False])
    def test_strict(self, talker: ChatDeltaMem, method: Any, strict: bool | None) -> None:
        """Then what has a default is there, too."""
        chain = talker.with_structured_output(Dog, method=method, strict=strict, include_raw=True)
        reply: Any = chain.invoke("hello")
        calls = reply["raw"].tool_calls
        said = str(calls[0]["args"]) if calls else reply["raw"].content
        assert "tail" in said or not strict

    def test_without_room(self, talker: ChatDeltaMem, method: Any) -> None:
        with pytest.raises(OutputParserException):
            talker.with_structured_output(Dog, method=method).invoke("hello", max_new_tokens=6)
        chain = talker.with_structured_output(Dog, method=method, include_raw=True, max_new_tokens=6)
        reply: Any = chain.invoke("hello")
        assert reply["parsed"] is None
        assert isinstance(reply["parsing_error"], OutputParserException)

    def test_what_a_class_checks_beyond_its_schema(self, talker: ChatDeltaMem, method: Any) -> None:
        class Picky(BaseModel):
            """Never pleased."""

            age: int = Field(ge=0, le=9)

            @field_validator("age")
            @classmethod
            def _never(cls, age: int) -> int:
                raise ValueError("no age will do")

        with pytest.raises(ValueError, match="no age will do"):
            talker.with_structured_output(Picky, method=method).invoke("hello")
        reply: Any = talker.with_structured_output(Picky, method=method, include_raw=True).invoke("hello")
        assert "no age will do" in str(reply["parsing_error"])

    def test_traced(self, talker: ChatDeltaMem, method: Any) -> None:
        options: list[Any] = []

        class Handler(BaseCallbackHandler):
            def on_chat_model_start(self, *args: Any, options: Any = None, **kwargs: Any) -> None:
                found.append(options)

        found = options
        talker.with_structured_output(Dog, method=method).invoke("hello", {"callbacks": [Handler()]})
        traced = options[0]["ls_structured_output_format"]
        assert traced["kwargs"]["method"] == method
        assert traced["schema"] == convert_to_json_schema(Dog)

    def test_in_a_session(self, talker: ChatDeltaMem, said: Said, method: Any) -> None:
        talker.with_session("alice").with_structured_output(Dog, method=method).invoke("hello")
        assert [role for role, _ in said("alice")] == ["user", "assistant"]

    def test_further_keywords(self, talker: ChatDeltaMem, said: Said, method: Any) -> None:
        talker.with_session("alice").with_structured_output(Dog, method=method, memory="off").invoke("hello")
        assert said("alice") == []


class TestFormats:
    def test_any_object(self, talker: ChatDeltaMem) -> None:
        assert isinstance(talker.with_structured_output(method="json_mode").invoke("hello"), dict)

    @pytest.mark.parametrize("given", [Dog, DogDict, {"type": "json_schema", "json_schema": {"schema": {"const": 7}}}])
    def test_of_a_call(self, talker: ChatDeltaMem, given: Any) -> None:
        reply = talker.invoke("hello", response_format=given).text
        if given is Dog:
            Dog.model_validate_json(reply)
        assert reply == "7" or '"name"' in reply

    def test_a_class_beside_tools(self, talker: ChatDeltaMem) -> None:
        """Either of both; with no choice but to answer, the format."""
        reply = talker.bind_tools([Paw], response_format=Dog).invoke("hello")
        assert reply.tool_calls or Dog.model_validate_json(reply.text)
        reply = talker.bind_tools([Paw], response_format=Dog, tool_choice="none").invoke("hello")
        assert Dog.model_validate_json(reply.text)

    def test_strict_of_the_call(self, talker: ChatDeltaMem) -> None:
        """It counts where the format doesn't say: what cannot be enforced is let pass."""
        schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 2}
        given = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": schema}}
        with pytest.raises(GenerationError, match="uniqueItems"):
            talker.invoke("hello", response_format=given)
        assert talker.invoke("hello", response_format=given, strict=False).text.startswith("[")


class TestErrors:
    @pytest.mark.parametrize(
        ("schema", "method", "found"),
        [
            (Dog, "magic", "method is 'magic', expected one of function_calling"),
            (None, "json_schema", "needs a schema"),
            (None, "function_calling", "needs a schema"),
            ({"type": "object"}, "json_schema", "no schema can be made of"),
            ({"type": "object"}, "function_calling", "tool 0 cannot be described"),
        ],
    )
    def test_what_is_no_schema(self, talker: ChatDeltaMem, schema: Any, method: Any, found: str) -> None:
        with pytest.raises(ConfigError, match=found):
            talker.with_structured_output(schema, method=method)

    @pytest.mark.parametrize("method", METHODS)
    def test_impossible_schemas(self, talker: ChatDeltaMem, method: Any) -> None:
        impossible = {"title": "f", "type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}
        with pytest.raises((ConfigError, GenerationError), match="can be generated for this schema"):
            talker.with_structured_output(impossible, method=method)
