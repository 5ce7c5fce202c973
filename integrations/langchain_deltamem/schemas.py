"""JSON schemas that refer to parts of themselves, which LangChain's conversion cuts where they come round."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from langchain_core.tools import BaseTool
from langchain_core.tools.base import create_schema_from_function
from langchain_core.utils.pydantic import is_basemodel_subclass

JSONSchema = dict[str, Any]


def own_schema(tool: object) -> JSONSchema | None:
    """The schema that LangChain's description of a tool is made from; None where it describes it by itself."""
    if isinstance(tool, BaseTool):
        tool = tool.tool_call_schema
        if isinstance(tool, dict):
            return cast("JSONSchema", tool)
    elif isinstance(tool, dict):
        return None
    elif callable(tool) and not isinstance(tool, type):
        function = cast("Callable[..., Any]", tool)
        tool = create_schema_from_function(
            function.__name__, function, filter_args=(), parse_docstring=True, include_injected=False
        )
    if isinstance(tool, type) and is_basemodel_subclass(tool):
        schema = getattr(tool, "model_json_schema", None) or tool.schema  # type: ignore[attr-defined]
        return cast("JSONSchema", schema())
    return None


def rooted(schema: JSONSchema) -> JSONSchema:
    """A schema that is a reference to a part of itself, as that part: templates read `properties` off the top."""
    named = _at(schema, schema.get("$ref"))
    if not isinstance(named, dict):
        return schema
    return rooted({**named, **{key: value for key, value in schema.items() if key != "$ref"}})


def refers_to_itself(schema: JSONSchema) -> bool:
    """Whether references lead in a circle."""
    return _leads_round(schema, schema, ())


def all_required(schema: JSONSchema) -> JSONSchema:
    """A copy in which all objects have all their properties and no others, wherever they are defined."""

    def copy(value: object) -> object:
        if isinstance(value, list):
            return [copy(one) for one in value]
        if not isinstance(value, dict):
            return value
        copied = {key: copy(one) for key, one in value.items()}
        if isinstance(value.get("properties"), dict):
            copied |= {"required": list(value["properties"]), "additionalProperties": False}
        return copied

    return cast("JSONSchema", copy(schema))


def _leads_round(root: JSONSchema, value: object, on_the_way: tuple[str, ...]) -> bool:
    if isinstance(value, list):
        return any(_leads_round(root, one, on_the_way) for one in value)
    if not isinstance(value, Mapping):
        return False
    ref = value.get("$ref")
    if isinstance(ref, str):
        if ref in on_the_way:
            return True
        if _leads_round(root, _at(root, ref), (*on_the_way, ref)):
            return True
    return any(_leads_round(root, one, on_the_way) for key, one in value.items() if key not in ("$defs", "definitions"))


def _at(root: object, ref: object) -> object:
    """What a reference within the schema points at; None if it is none, or to nowhere."""
    if not isinstance(ref, str) or not ref.startswith("#"):
        return None
    at = root
    for step in _steps(ref):
        at = at.get(step) if isinstance(at, Mapping) else None
    return at


def _steps(ref: str) -> Iterator[str]:
    return (step.replace("~1", "/").replace("~0", "~") for step in ref.split("/")[1:])
