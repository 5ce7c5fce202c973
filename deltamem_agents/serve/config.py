"""What a server may be told."""

from pydantic import BaseModel, ConfigDict, Field

PREVIOUS = "x-previous-application"
"""The header of a refusal that says which application has the memory's adapter."""


class ServeConfig(BaseModel):
    """Names and limits of a server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_id: str = "deltamem"
    """What clients call the model."""
    max_batch: int = Field(default=16, ge=1)
    """How many calls the model works on together; the engine's own, of which the server must know."""
    max_queue: int = Field(default=256, ge=0)
    """How many calls may wait for the model; one more is answered 429."""
    max_new_tokens: int = Field(default=512, ge=1)
    """The longest reply, in tokens, where a request doesn't say."""
    drain_timeout: float = Field(default=30.0, ge=0)
    """How many seconds calls that are under way have left when the server is told to stop."""
    max_body_bytes: int = Field(default=4 * 2**20, ge=1)
    """The largest body of a request, other than an import's."""
    max_import_bytes: int = Field(default=256 * 2**20, ge=1)
    """The largest export that is taken in."""
    body_timeout: float = Field(default=30.0, gt=0)
    """How many seconds a client may take to send the headers of a request, and then to send its body."""
    max_messages: int = Field(default=4096, ge=1)
    """The most messages of a request."""
    previous: str | None = Field(default=None, pattern=r"^/[A-Za-z0-9._/-]*[A-Za-z0-9]$")
    """The path of the application that memories of another adapter are left to until they are rebuilt: on Ray only."""
    local_only: bool = False
    """Whether requests must name this machine as their host, as when no keys are asked for: a page on the web that a
    browser here shows can then not speak to the server."""
