"""Tools as LlamaIndex has them, and the calls of past messages, also as other makers' LLMs leave them."""

import json
from collections.abc import Mapping
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.tools.types import BaseTool
from pydantic import BaseModel


def described_tool(tool: BaseTool) -> dict[str, Any]:
    """A tool in the style of OpenAI's API.

    Of a class that refers to itself LlamaIndex keeps the definitions, and not which of them it is.
    """
    found = tool.metadata.to_openai_tool(skip_length_check=True)
    schema = {} if tool.metadata.fn_schema is None else tool.metadata.fn_schema.model_json_schema()
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if name in schema.get("$defs", {}):
        own = {key: value for key, value in schema["$defs"][name].items() if key not in ("title", "description")}
        found["function"]["parameters"] = {**own, "$defs": schema["$defs"]}
    return found


def said_calls(message: ChatMessage) -> list[dict[str, object]]:
    """A message's calls, in the engine's form: its blocks, or where it has none, what `additional_kwargs` holds."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        return [_call(block.tool_name, block.tool_kwargs, block.tool_call_id) for block in blocks]
    kept = message.additional_kwargs.get("tool_calls")
    found = [_read(one) for one in kept] if isinstance(kept, list | tuple) else []
    return [call for call in found if call is not None]


def _read(given: object) -> dict[str, object] | None:
    """A call of OpenAI's, Anthropic's, Bedrock's, Ollama's or LlamaIndex's own form; None if it names no tool."""
    outer = _fields(given)
    inner = _fields(outer["function"]) if "function" in outer else outer
    name = next((inner[key] for key in ("name", "tool_name") if inner.get(key)), None)
    arguments = next((inner[key] for key in ("arguments", "input", "tool_kwargs", "args") if key in inner), None)
    id = next((outer[key] for key in ("id", "toolUseId", "tool_id", "tool_call_id") if outer.get(key)), None)
    return None if name is None else _call(str(name), arguments, id)


def _fields(given: object) -> Mapping[str, object]:
    if isinstance(given, Mapping):
        return given
    if isinstance(given, BaseModel):
        return {name: getattr(given, name) for name in type(given).model_fields}
    return getattr(given, "__dict__", {})


def _call(name: str, arguments: object, id: object) -> dict[str, object]:
    """Of a call of long ago only the rendering matters: arguments that are no object become the text of one."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments.strip() or "{}")
        except ValueError:
            arguments = {"text": arguments}
    if not isinstance(arguments, Mapping):
        arguments = {"value": arguments} if arguments else {}
    return {"name": name, "arguments": dict(arguments), **({"id": str(id)} if id else {})}
