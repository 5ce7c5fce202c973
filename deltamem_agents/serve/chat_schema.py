"""The body of `POST /v1/chat/completions`: OpenAI's fields that are served, and what only a memory needs."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from deltamem_agents.engine import MemoryMode

Zero = Annotated[float, Field(ge=0, le=0)]
"""A field that is served at its default only."""
No = Annotated[list[JsonValue], Field(max_length=0)]


class Strict(BaseModel):
    """Unknown fields are refused, never passed over."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    """What an assistant called."""

    name: str
    arguments: str


class Call(Strict):
    """A tool call of an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ChatMessage(Strict):
    """A message. `id` and `snapshot` are ours: the caller's name for it, and the handle of a reply."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: No | None = None
    id: str | None = None
    snapshot: str | None = None

    @property
    def plain(self) -> dict[str, object]:
        """As the engine takes it."""
        content = self.content
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        rest = self.model_dump(include={"name", "tool_calls", "tool_call_id", "id", "snapshot"}, exclude_none=True)
        for call in rest.get("tool_calls", []):
            call.pop("index", None)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content, **rest}


class StreamOptions(Strict):
    """What a stream ends with."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ConversationName(Strict):
    """A conversation by its id, which is a session's name."""

    id: str


class SamplingFields(Strict):
    """What chat completions and responses have in common."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stream: bool | None = None
    tools: list[dict[str, JsonValue]] | None = None
    tool_choice: str | dict[str, JsonValue] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    user: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    session_id: str | None = None
    """Whose memory: a session's name."""
    conversation: str | ConversationName | None = None
    """The same."""
    thread: str | None = None
    """The line of conversation, where a session has several at a time."""
    memory: MemoryMode = "read_write"
    recent_messages: int | None = Field(None, ge=0)
    """How many recent messages are also in the prompt, at least."""
    top_k: int | None = Field(None, ge=1)
    repetition_penalty: float | None = Field(None, gt=0)


class ChatRequest(SamplingFields):
    """A chat completion to be made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "deltamem",
                    "messages": [{"role": "user", "content": "My dog is called Rex."}],
                    "session_id": "alice",
                }
            ]
        }
    )

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, JsonValue] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    store: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None
