"""The body of `POST /v1/responses`: OpenAI's fields that are served."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, JsonValue, Tag

from deltamem_agents.serve.chat_schema import No, SamplingFields, Strict


class InputText(Strict):
    """Text that is said, or was replied."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: No | None = None
    logprobs: list[JsonValue] | None = None
    """What a reply came with; only its text is said again."""


class InputMessage(Strict):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText]
    id: str | None = None
    status: str | None = None
    phase: None = None

    @property
    def plain(self) -> dict[str, object]:
        """As the engine takes it."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class FunctionCall(Strict):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None

    @property
    def plain(self) -> dict[str, object]:
        """As the engine takes it."""
        call = {"id": self.call_id, "name": self.name, "arguments": self.arguments}
        return {"role": "assistant", "content": "", "tool_calls": [call]}


class FunctionOutput(Strict):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]
    id: str | None = None
    status: str | None = None

    @property
    def plain(self) -> dict[str, object]:
        """As the engine takes it."""
        text = self.output if isinstance(self.output, str) else "\n".join(part.text for part in self.output)
        return {"role": "tool", "content": text, "tool_call_id": self.call_id}


def _kind(item: object) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return str(kind or "message")


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionOutput, Tag("function_call_output")],
    Discriminator(_kind),
]


class TextFormat(Strict):
    """What the text must be, flat as this endpoint has it."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None

    @property
    def plain(self) -> dict[str, object]:
        """As the engine takes it."""
        if self.type != "json_schema":
            return {"type": self.type}
        inner = {"name": self.name, "description": self.description, "schema": self.schema_, "strict": self.strict}
        return {"type": self.type, "json_schema": {key: value for key, value in inner.items() if value is not None}}


class TextOptions(Strict):
    """How the text is held to a format."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesRequest(SamplingFields):
    """A response to be made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "deltamem", "input": "My dog is called Rex.", "conversation": "alice"}]
        }
    )

    input: str | list[InputItem]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextOptions | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    store: bool | None = None
    """False: without a name, the frozen model answers, and nothing is kept."""
    truncation: Literal["auto", "disabled"] | None = None
    """Without effect: a memory holds what a prompt doesn't."""
    background: Literal[False] | None = None
    reasoning: None = None
    max_tool_calls: None = None

    @property
    def messages(self) -> list[dict[str, object]]:
        """What is said, as the engine takes it; calls that follow each other are one message."""
        said: list[dict[str, object]] = []
        if self.instructions is not None:
            said.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*said, {"role": "user", "content": self.input}]
        for item in self.input:
            plain = item.plain
            if isinstance(item, FunctionCall) and said and said[-1]["role"] == "assistant":
                earlier = said[-1].get("tool_calls", [])
                assert isinstance(earlier, list)
                assert isinstance(plain["tool_calls"], list)
                said[-1] = {**said[-1], "tool_calls": [*earlier, *plain["tool_calls"]]}
            else:
                said.append(plain)
        return said
