"""Tools as LangChain's users give them, to tools as the engine takes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeAlias, TypeVar

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import TypeAdapter

from deltamem_agents import ConfigError, ToolUse
from langchain_deltamem.errors import langchain_errors

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
            found = convert_to_openai_tool(plain(tool), strict=strict)
            if untitled(found) not in map(untitled, described):  # a class and its own schema are one tool
                described.append(found)
        except (TypeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"tool {position} cannot be described ({error}): expected a LangChain tool, a function with types and "
                "docstring, a pydantic class, a dataclass, a TypedDict or a JSON schema with a title"
            ) from error
    return described


def plain(given: Given) -> Given | dict[str, Any]:
    """A dataclass as its JSON schema, of which LangChain would see no more than the signature; the rest as it is."""
    if not (isinstance(given, type) and is_dataclass(given)):
        return given
    return {"title": given.__name__, **TypeAdapter[Any](given).json_schema()}


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
