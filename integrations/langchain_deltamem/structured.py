"""Structured output: how a schema is put to the model, and how its reply becomes an object again."""

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from operator import itemgetter
from typing import Any, Literal, TypeAlias, get_args

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import Generation
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import TypeAdapter

from deltamem_agents import ConfigError
from langchain_deltamem.errors import check_options
from langchain_deltamem.tools import engine_tools, plain, tool_keywords, untitled

Method: TypeAlias = Literal["function_calling", "json_schema", "json_mode"]
"""`function_calling`: a forced tool call. `json_schema`: the reply is held to the schema. `json_mode`: the same, but
keywords that cannot be enforced are let pass. The prompt shows the schema in each case."""
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
        keywords = tool_keywords([schema], choice=tool_name(schema), strict=strict)
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
        strict: True: all properties are required, and there are no others. False: keywords that cannot be enforced are
            let pass. None: they are an error. Counts where the format itself doesn't say.

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
        name, schema = tool_name(given), convert_to_json_schema(plain(given), strict=strict)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"no schema can be made of {given!r} ({error}): expected a pydantic class, a dataclass, a TypedDict or a "
            "JSON schema with a title"
        ) from error
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
    """What the tool of a schema is called.

    Raises:
        ConfigError: it is none.
    """
    function = engine_tools([schema])[0]["function"]
    assert isinstance(function, dict)
    return str(function["name"])


def parser(schema: Schema | None, method: Method) -> Runnable[AIMessage, Any]:
    """Makes objects of replies: of the schema's class where that is a pydantic one or a dataclass, else dicts."""
    if is_dataclass(schema):
        return parser(plain(schema), method) | RunnableLambda(TypeAdapter[Any](schema).validate_python)
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    if method == "function_calling":
        if is_class:
            return _ObjectParser(tools=[schema], first_tool_only=True)  # type: ignore[list-item]
        assert schema is not None
        return _DictParser(key_name=tool_name(schema), first_tool_only=True)
    if is_class:
        return PydanticOutputParser(pydantic_object=schema)  # type: ignore[arg-type]
    return JsonOutputParser()


class _DictParser(JsonOutputKeyToolsParser):
    """Refuses a message without a call, for which LangChain's own gives None."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        return _there(super().parse_result(result, partial=partial), result, partial)


class _ObjectParser(PydanticToolsParser):
    """Likewise, for pydantic classes."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        return _there(super().parse_result(result, partial=partial), result, partial)


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
