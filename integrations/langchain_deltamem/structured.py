"""Structured output: how a schema is put to the model, and how its reply becomes an object again."""

import json
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from operator import itemgetter
from typing import Any, Literal, TypeAlias, get_args

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import TypeAdapter

from deltamem_agents import ConfigError
from langchain_deltamem.errors import check_options
from langchain_deltamem.tools import engine_tools, plain, tool_keywords, untitled

Method: TypeAlias = Literal["function_calling", "json_schema", "json_mode"]
"""`function_calling`: a forced tool call. `json_schema`: the reply is held to the schema. `json_mode`: the same, and no
word about what cannot be enforced of it. The prompt shows the schema in each case."""
Schema: TypeAlias = dict[str, Any] | type
FORMATS = ("text", "json_object", "json_schema", "regex", "lark")
"""Types of the engine's own response formats."""


def schema_keywords(schema: Schema | None, *, method: str, strict: bool | None) -> dict[str, object]:
    """The call's keywords for replies that are objects of a schema.

    Raises:
        ConfigError: the method is unknown or needs a schema, or what is given is none.
        GenerationError: nothing can be generated for the schema.
    """
    if method not in get_args(Method):
        raise ConfigError(f"method is {method!r}, expected one of {', '.join(get_args(Method))}")
    if schema is None and method != "json_mode":
        raise ConfigError(
            f"method {method!r} needs a schema: a pydantic class, a dataclass, a TypedDict or a JSON schema, got None"
        )
    schema = None if schema is None else plain(schema)
    if schema is None or method != "function_calling":
        lenient = False if method == "json_mode" and strict is None else strict
        keywords: dict[str, object] = {"response_format": checked_format(schema, strict=lenient)}
    else:
        keywords = tool_keywords([_one_tool(schema, strict)], choice=tool_name(schema))
    traced = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
    return keywords if schema is None else {**keywords, "ls_structured_output_format": traced}


def checked_format(given: Schema | None, *, strict: bool | None) -> dict[str, object]:
    """`as_format`, checked.

    Raises:
        ConfigError: no schema can be made of what is given.
        GenerationError: there can be no reply of this format.
    """
    format = as_format(given, strict=strict)
    check_options({"response_format": format})
    return format


def as_format(given: Schema | None, *, strict: bool | None) -> dict[str, object]:
    """The engine's format for what a caller gives as one.

    Args:
        given: the engine's own dict, which is OpenAI's; a pydantic class, a dataclass, a TypedDict or a JSON schema;
            None: any JSON object.
        strict: True: all properties are required, there are no others, and what cannot be enforced is an error. None:
            it is let pass, with a warning. False: without. Counts where the format itself doesn't say.

    Raises:
        ConfigError: no schema can be made of what is given.
    """
    if given is None:
        return {"type": "json_object"}
    if isinstance(given, dict) and given.get("type") in FORMATS:
        named = given.get("json_schema")
        if strict is None or not isinstance(named, dict):
            return given
        return {**given, "json_schema": {"strict": strict, **named}}
    try:
        function = _function(given, strict)
    except ConfigError as error:
        raise ConfigError(
            f"no schema can be made of {given!r} ({error}): expected a pydantic class, a dataclass, a TypedDict or a "
            "JSON schema with a title"
        ) from error
    name, described = function["name"], {"description": function["description"]} if "description" in function else {}
    schema = {"title": name, **described, **function.get("parameters", {})}
    named = {"name": name, "schema": schema}
    return {"type": "json_schema", "json_schema": named if strict is None else {**named, "strict": strict}}


def format_prompt(format: object) -> list[str]:
    """What the system prompt says of a JSON format, which the reply is held to: a model should know what it is asked.

    Nothing for other formats: small models make nothing of a grammar.
    """
    if not isinstance(format, Mapping) or format.get("type") not in ("json_object", "json_schema"):
        return []
    asked = "# Reply format\n\nReply with one JSON object and nothing else."
    if format["type"] == "json_object":
        return [asked]
    schema = json.dumps(untitled(format["json_schema"]["schema"]), ensure_ascii=False)
    return [f"{asked} It has this schema:\n<schema>\n{schema}\n</schema>"]


def tool_name(schema: Schema) -> str:
    """What the tool of a schema is called: as the schema is, as far as a tool can be called that.

    Raises:
        ConfigError: it is none.
    """
    named = re.sub(r"[^A-Za-z0-9_.:/-]+", "_", str(_function(schema, None)["name"])).strip("_")
    return named[:64] or "reply"


def _one_tool(schema: Schema, strict: bool | None) -> dict[str, Any]:
    """The tool of which a call is the object."""
    return {"type": "function", "function": {**_function(schema, strict), "name": tool_name(schema)}}


def _function(schema: Schema, strict: bool | None) -> dict[str, Any]:
    found: Any = engine_tools([schema], strict=strict)[0]["function"]
    return {key: value for key, value in found.items() if value is not None}


def parser(schema: Schema | None, method: Method) -> Runnable[AIMessage, Any]:
    """Makes objects of replies: of the schema's class where that is a pydantic one or a dataclass, else dicts."""
    if is_dataclass(schema):
        return parser(plain(schema), method) | RunnableLambda(TypeAdapter[Any](schema).validate_python)
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    if method == "function_calling":
        assert schema is not None
        name = tool_name(schema)
        made = _ObjectParser(tools=[schema], call=name, first_tool_only=True) if is_class else None  # type: ignore[list-item]
        return made or _DictParser(key_name=name, first_tool_only=True)
    if is_class:
        return PydanticOutputParser(pydantic_object=schema)  # type: ignore[arg-type]
    return JsonOutputParser()


class _DictParser(JsonOutputKeyToolsParser):
    """Refuses a message without a call, for which LangChain's own gives None."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        return _there(super().parse_result(result, partial=partial), result, partial)


class _ObjectParser(PydanticToolsParser):
    """Likewise, for pydantic classes. They need not be called as their tool is."""

    call: str
    """The tool's name."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        return _there(super().parse_result(list(map(self._by_class, result)), partial=partial), result, partial)

    def _by_class(self, generation: Generation) -> Generation:
        """With the class's own name on its calls, by which LangChain looks it up."""
        if not isinstance(generation, ChatGeneration) or not isinstance(generation.message, AIMessage):
            return generation
        its = getattr(self.tools[0], "model_config", {}).get("title") or self.tools[0].__name__
        message = generation.message
        calls = [{**call, "name": its if call["name"] == self.call else call["name"]} for call in message.tool_calls]
        return ChatGeneration(message=message.model_copy(update={"tool_calls": calls}))


def _there(parsed: Any, result: list[Generation], partial: bool) -> Any:
    if parsed is None and not partial:
        said = result[0].text
        raise OutputParserException(
            f"the reply holds no object ({said[:80]!r}), expected a tool call: if it was cut off, raise max_new_tokens",
            llm_output=said,
        )
    return parsed


def with_raw(model: Runnable[Any, AIMessage], parse: Runnable[AIMessage, Any]) -> Runnable[Any, dict[str, Any]]:
    """The reply as it came, what was made of it, and what went wrong in that: keys raw, parsed, parsing_error."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parse, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
