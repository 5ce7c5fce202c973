"""Formats that a whole reply can be held to."""

import re
from typing import Annotated, Literal, Self, TypeAlias

from llguidance import LLMatcher
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from deltamem_agents.backbone.schemas import json_expression, say_unenforced, schema_error, unenforced


class JsonObjectFormat(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["json_object"]

    @property
    def lark(self) -> str:
        """The format as an expression in a grammar."""
        return json_expression({"type": "object"}, lenient=False)


class NamedSchema(BaseModel):
    """A JSON schema, as OpenAI's API wraps it."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    body: dict[str, JsonValue] = Field(alias="schema")
    """The schema."""
    name: str | None = None
    """For people; without effect."""
    description: str | None = None
    """For people; without effect."""
    strict: bool | None = None
    """True: what cannot be enforced of the schema is an error. None: it is let pass, with a warning. False: without."""

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if error := schema_error(self.body, lenient=not self.strict):
            raise ValueError(f"nothing can be generated for this schema: {error}")
        if self.strict is None:
            say_unenforced("a response format" if self.name is None else f"format {self.name!r}", unenforced(self.body))
        return self


class JsonSchemaFormat(BaseModel):
    """JSON that is valid by a schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def lark(self) -> str:
        """The format as an expression in a grammar."""
        return json_expression(self.json_schema.body, lenient=not self.json_schema.strict)


class RegexFormat(BaseModel):
    """Text that a regular expression matches as a whole: Rust's syntax, without look-around."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["regex"]
    regex: str

    @property
    def lark(self) -> str:
        """The format as an expression in a grammar."""
        escaped = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", self.regex, flags=re.DOTALL)
        return f"/{escaped}/".replace("\n", r"\n")

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if error := LLMatcher.validate_grammar(f"%llguidance {{}}\nstart: {self.lark}"):
            raise ValueError(f"{self.regex!r} cannot be generated: {error}")
        return self


class LarkFormat(BaseModel):
    """Text by a context-free grammar, in llguidance's dialect of Lark, beginning at `start`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["lark"]
    grammar: str

    @property
    def lark(self) -> str:
        """The format as an expression in a grammar."""
        return f"%lark {{\n{self.grammar}\n}}"

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if error := LLMatcher.validate_grammar(f"%llguidance {{}}\nstart: {self.lark}"):
            raise ValueError(f"the grammar cannot be used: {error}")
        return self


ResponseFormat: TypeAlias = Annotated[
    JsonObjectFormat | JsonSchemaFormat | RegexFormat | LarkFormat, Field(discriminator="type")
]
"""As in OpenAI's API: `{"type": "json_schema", "json_schema": {"schema": …}}`; also `regex` and `lark`."""
