"""Tools as LangChain's users give them, to tools as the engine takes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeAlias, TypeVar

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError
from typing_extensions import is_typeddict

from deltamem_agents import ConfigError, ToolUse
from langchain_deltamem.errors import langchain_errors
from langchain_deltamem.schemas import all_required, own_schema, refers_to_itself, rooted

Given = TypeVar("Given")
ToolLike: TypeAlias = dict[str, Any] | type | Callable[..., Any] | BaseTool


def engine_tools(tools: Sequence[ToolLike], *, strict: bool | None = None) -> list[dict[str, object]]:
    """Describes tools in the style of OpenAI's API.

    Args:
        tools: LangChain tools, functions, pydantic classes, dataclasses, TypedDicts, JSON schemas, and OpenAI's,
            Anthropic's or Bedrock's dicts.
        strict: True: all properties are required, and there are no others. Calls are held to the schema either way.

    Raises:
        ConfigError: something that is no tool, or that no call can be generated for.
    """
    described: list[dict[str, object]] = []
    for position, tool in enumerate(tools):
        try:
            found = _described(plain(tool), strict)
            if untitled(found) not in map(untitled, described):  # a class and its own schema are one tool
                described.append(found)
        except (TypeError, ValueError, KeyError, RecursionError) as error:
            raise ConfigError(
                f"tool {position} cannot be described ({error}): expected a LangChain tool, a function with types and "
                "docstring, a pydantic class, a dataclass, a TypedDict or a JSON schema with a title"
            ) from error
    return described


def _described(tool: ToolLike, strict: bool | None) -> dict[str, Any]:
    """LangChain's description, which writes out references; those of a schema that refers to itself stay."""
    found = convert_to_openai_tool(tool, strict=strict)
    schema = own_schema(tool)
    if schema is not None and refers_to_itself(schema):
        kept = {key: untitled(value) for key, value in rooted(schema).items() if key not in ("title", "description")}
        found["function"]["parameters"] = all_required(kept) if strict else kept
    return found


def plain(given: Given) -> Given | dict[str, Any]:
    """What LangChain would see only a part of, in a form that it sees whole; the rest as it is."""
    if isinstance(given, type) and (is_dataclass(given) or _is_endless_dict(given)):
        return plain({"title": given.__name__, **rooted(TypeAdapter[Any](given).json_schema())})
    if not isinstance(given, dict):
        return given
    if "name" in given and "inputSchema" in given:  # as MCP describes tools
        return {"name": given["name"], "description": given.get("description"), "parameters": given["inputSchema"]}
    schema = rooted(given) if "$ref" in given else given
    if "title" in schema and "name" not in schema and ("properties" not in schema or "$ref" in given):
        rest = {key: value for key, value in schema.items() if key not in ("title", "description")}
        return {"name": schema["title"], "description": schema.get("description", ""), "parameters": rest}
    return given


def _is_endless_dict(given: type) -> bool:
    try:
        return is_typeddict(given) and refers_to_itself(TypeAdapter[Any](given).json_schema())
    except PydanticUserError:  # pydantic wants typing_extensions' before Python 3.12
        return False


def untitled(schema: object) -> object:
    """Without the titles that pydantic gives to fields; they say nothing to the model."""
    if isinstance(schema, Mapping):
        return {key: untitled(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    return [untitled(value) for value in schema] if isinstance(schema, list) else schema


def tool_keywords(
    tools: Sequence[ToolLike],
    *,
    choice: str | bool | Mapping[str, object] | None = None,
    parallel: bool | None = None,
    strict: bool | None = None,
) -> dict[str, object]:
    """The call's keywords for tools, checked.

    Raises:
        ConfigError: a tool that is described badly, or a choice that cannot be.
    """
    with langchain_errors():
        described = engine_tools(tools, strict=strict)
        ToolUse.parse(described, choice, parallel=parallel is not False)
    keywords = {"tools": described or None, "tool_choice": choice, "parallel_tool_calls": parallel}
    return {name: value for name, value in keywords.items() if value is not None}


def is_forced(choice: object) -> bool:
    """Whether a reply must be a tool call."""
    return choice is not None and choice is not False and choice not in ("auto", "none")
