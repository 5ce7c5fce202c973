"""Tools that a model may call, and how much choice it has."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from deltamem_agents.backbone.schemas import say_unenforced, schema_error, unenforced
from deltamem_agents.errors import ConfigError

_NAME = r"[A-Za-z0-9_.:/-]{1,128}"


class Tool(BaseModel):
    """A tool, as it is described to the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """What the model calls it: letters, digits, and `_ . : / -`."""
    description: str = ""
    """What it does, for the model."""
    parameters: dict[str, JsonValue] = Field({"type": "object", "properties": {}})
    """JSON schema of its arguments, an object."""

    @model_validator(mode="before")
    @classmethod
    def _openai_style(cls, tool: object) -> object:
        """Takes `{"type": "function", "function": {…}}`.

        Calls are always held to the schema, but for what cannot be enforced of it: that is an error if `strict` is
        true, and is said if it isn't given.
        """
        if isinstance(tool, Mapping) and tool.get("type", "function") == "function":
            inner = tool.get("function", tool)
            if isinstance(inner, Mapping):
                _check_strictness(inner)
                return {k: v for k, v in inner.items() if k not in ("type", "strict") and v is not None}
        return tool

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch(_NAME, name):
            raise ValueError(f"{name[:60]!r} is no tool name: expected 1 to 128 of letters, digits and _ . : / -")
        return name

    @field_validator("parameters")
    @classmethod
    def _is_an_objects_schema(cls, schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if schema.setdefault("type", "object") != "object":
            raise ValueError(f"arguments are an object, but the schema's type is {schema['type']!r}")
        if error := schema_error(schema, lenient=True):
            raise ValueError(f"no arguments can be generated for this schema: {error}")
        return schema

    @property
    def plain(self) -> dict[str, JsonValue]:
        """In the style of OpenAI's API, which chat templates expect."""
        return {"type": "function", "function": self.model_dump()}


def _check_strictness(tool: Mapping[object, object]) -> None:
    schema, strict = tool.get("parameters"), tool.get("strict")
    if not isinstance(schema, dict) or strict is False:
        return
    found = unenforced(schema)
    if strict and found:
        raise ValueError(f"strict, but calls cannot be held to {'; '.join(found)}: leave that out, or strict")
    say_unenforced(f"tool {tool.get('name')!r}", found)


ToolLike: TypeAlias = Tool | Mapping[str, object]


class ToolUse(BaseModel):
    """The tools of one generation, and what the model may do with them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: tuple[Tool, ...] = ()
    """What can be called."""
    choice: Literal["auto", "none", "required"] = "auto"
    """`auto`: the model decides; `required`: the reply is one call; `none`: the tools are not even shown."""
    named: str | None = None
    """With `required`: the tool it must be."""
    parallel: bool = True
    """With `auto`: whether a reply may hold several calls."""

    @property
    def shown(self) -> tuple[Tool, ...]:
        """The tools the prompt describes."""
        return () if self.choice == "none" else self.tools

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools a reply may call."""
        return tuple(tool for tool in self.shown if self.named is None or tool.name == self.named)

    @classmethod
    def parse(cls, tools: Sequence[ToolLike] | None, choice: object = None, *, parallel: bool = True) -> Self:
        """Checks tools and choice.

        Args:
            tools: tools, or dicts in the style of OpenAI's API.
            choice: None or "auto"; "none"; "required", "any" or True; a tool's name, or OpenAI's dict that holds it.
            parallel: whether a reply may hold several calls where the model decides.

        Raises:
            ConfigError: names the tool by position, and what is wrong with it; or a choice that cannot be.
        """
        checked = tuple(_checked(position, tool) for position, tool in enumerate(tools or ()))
        names = [tool.name for tool in checked]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"two tools are called {twice[0]!r}: give each its own name")
        word: object = choice
        if isinstance(choice, Mapping):
            function = choice.get("function", choice)
            word = function.get("name") if isinstance(function, Mapping) else None
        elif choice is None or choice == "auto":
            return cls(tools=checked, parallel=parallel)
        elif choice is False or choice == "none":
            return cls(tools=checked, choice="none")
        elif checked and (choice is True or choice in ("required", "any")):
            return cls(tools=checked, choice="required")
        if word not in names:
            raise ConfigError(
                f"tool_choice is {choice!r}, expected 'auto', 'none', 'required' or the name of a tool that is given "
                f"({', '.join(names) or 'none is'})"
            )
        return cls(tools=checked, choice="required", named=str(word))


def _checked(position: int, tool: object) -> Tool:
    if isinstance(tool, Tool):
        return tool
    try:
        return Tool.model_validate(tool)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'tool'}: {e['msg']}" for e in error.errors())
        raise ConfigError(
            f"tool {position} is not valid ({found}): expected {{'type': 'function', 'function': {{'name': …, "
            "'description': …, 'parameters': a JSON schema}}}}"
        ) from error
