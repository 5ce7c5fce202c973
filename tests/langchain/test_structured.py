"""Structured output: every reply is an object of the schema, by every method, class and call."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import pytest
from jsonschema import validate
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import HumanMessage, convert_to_messages
from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import BaseModel, Field, field_validator

from deltamem_agents import ConfigError, DeltaMemEngine, GenerationError, Message
from langchain_deltamem import ChatDeltaMem
from langchain_deltamem.calls import EngineCall
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


@dataclass
class Kennel:
    """Where dogs live."""

    name: Annotated[str, Field(max_length=6)]
    dogs: Annotated[list[Dog], Field(max_length=1)]


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

    def test_a_dataclass_gives_its_objects(self, talker: ChatDeltaMem, method: Any) -> None:
        chain = talker.with_structured_output(Kennel, method=method)
        for reply in (chain.invoke("hello"), list(chain.stream("hello"))[-1]):
            assert isinstance(reply, Kennel)
            assert all(isinstance(dog, Dog) for dog in reply.dogs)

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

    @pytest.mark.parametrize(
        "given", [Dog, DogDict, Kennel, {"type": "json_schema", "json_schema": {"schema": {"const": 7}}}]
    )
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
        """It counts where the format doesn't say: what cannot be enforced is let pass, or an error."""
        schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 2}
        given = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": schema}}
        with pytest.raises(GenerationError, match="uniqueItems"):
            talker.invoke("hello", response_format=given, strict=True)
        with pytest.warns(UserWarning, match="format 'numbers'.*uniqueItems"):
            talker.invoke("hello", response_format=given)
        assert talker.invoke("hello", response_format=given, strict=False).text.startswith("[")


SHOWN = {"title": "Dog", "type": "object", "properties": {"tail": {"type": "boolean", "description": "wagging"}}}


class TestShown:
    """The prompt says what is asked for; the memory keeps what was said, and nothing of that."""

    def prompt(self, model: ChatDeltaMem, said: Any = "hello", **keywords: Any) -> list[Message]:
        messages = convert_to_messages(said if isinstance(said, list) else [("user", said)])
        call = EngineCall.parse(messages, keywords=keywords, settings={}, stop=None, model="m", adapter=None)
        return call.messages

    def test_in_the_system_prompt(self, talker: ChatDeltaMem) -> None:
        shown = self.prompt(talker, response_format=SHOWN)
        assert [message.role for message in shown] == ["system", "user"]
        assert '"wagging"' in shown[0].content
        behind = self.prompt(talker, [("system", "Be kind."), ("user", "hello")], response_format=SHOWN)
        assert behind[0].content == f"Be kind.\n\n{shown[0].content}"
        assert behind[1:] == shown[1:]

    @pytest.mark.parametrize(
        "keywords",
        [
            {},
            {"response_format": {"type": "text"}},
            {"response_format": {"type": "regex", "regex": "a+"}},
            {"response_format": SHOWN, "tools": [{"name": "f"}], "tool_choice": "any"},
        ],
        ids=["none", "text", "regex", "a call is forced"],
    )
    def test_nothing_where_there_is_nothing_to_show(self, talker: ChatDeltaMem, keywords: dict[str, Any]) -> None:
        assert [message.role for message in self.prompt(talker, **keywords)] == ["user"]

    def test_the_model_reads_it(self, talker: ChatDeltaMem) -> None:
        plain, shown = (
            talker.with_structured_output(schema, method="json_mode", include_raw=True).invoke("hello")["raw"]
            for schema in (None, SHOWN)
        )
        assert shown.usage_metadata["input_tokens"] > plain.usage_metadata["input_tokens"] + len("wagging")

    @pytest.mark.parametrize("system", [None, "Be kind."])
    def test_the_memory_is_that_of_the_words_alone(
        self, talker: ChatDeltaMem, engine: DeltaMemEngine, said: Said, system: str | None
    ) -> None:
        """The tokens written are the user's; to the ledger a turn with a format is a turn."""
        asked: list[Any] = [("system", system), ("user", "I have a dog.")] if system else [("user", "I have a dog.")]
        reply = talker.invoke(asked, session_id="alice", response_format=SHOWN)
        assert said("alice") == [("user", "I have a dog."), ("assistant", reply.text)]
        shown = self.prompt(talker, asked, response_format=SHOWN)
        engine.generate([*shown[:-1], {"role": "user", "content": "I have a dog."}], session="told", max_new_tokens=1)
        assert engine.state("alice").tensor.allclose(engine.state("told").tensor, atol=1e-5)

    def test_a_thread_goes_on_without_it(self, talker: ChatDeltaMem, said: Said) -> None:
        history: list[Any] = [HumanMessage("I have a dog.")]
        history.append(talker.invoke(history, session_id="alice", response_format=Dog))
        history.append(HumanMessage("And a cat."))
        talker.invoke(history, session_id="alice", max_new_tokens=4)
        assert [role for role, _ in said("alice")] == ["user", "assistant"] * 2


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
