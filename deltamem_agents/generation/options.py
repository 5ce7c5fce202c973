"""What a caller may ask of one generation."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from deltamem_agents.errors import GenerationError
from deltamem_agents.generation.formats import ResponseFormat


class GenerationOptions(BaseModel):
    """Sampling and stopping, under the names of transformers' `GenerationConfig`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_new_tokens: int = Field(256, ge=1)
    """At most this many tokens are generated."""
    temperature: float | None = Field(None, ge=0)
    """None or 0: greedy. Otherwise tokens are sampled at this temperature."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample among the most probable tokens that make up this share."""
    top_k: int | None = Field(None, ge=1)
    """Sample among this many most probable tokens."""
    repetition_penalty: float | None = Field(None, gt=0)
    """Above 1: makes tokens that have occurred less likely."""
    no_repeat_ngram_size: int | None = Field(None, ge=0)
    """A reply, unless it is held to a format or tools, holds no run of so many tokens twice: the way out of a loop.
    None: as the model's generation config says; 0: it may."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """Makes sampling repeatable."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The reply ends before the first of these strings, also in the middle of JSON."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Also give the log-probability of each token, and of this many most probable others."""
    response_format: ResponseFormat | None = None
    """What the whole reply must be: `{"type": "json_object"}`, `{"type": "json_schema", "json_schema": {"schema": …}}`,
    `{"type": "regex", "regex": …}` or `{"type": "lark", "grammar": …}`; None or `{"type": "text"}`: any text."""

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_strings(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("response_format", mode="before")
    @classmethod
    def _any_text(cls, value: object) -> object:
        return None if value == {"type": "text"} else value

    @classmethod
    def parse(cls, options: dict[str, object]) -> Self:
        """Checks options given as keywords.

        Raises:
            GenerationError: names each unknown option and bad value.
        """
        try:
            return cls.model_validate({k: v for k, v in options.items() if v is not None})
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'options'}: {e['msg']}" for e in error.errors())
            known = ", ".join(cls.model_fields)
            raise GenerationError(f"bad generation options ({found}): known are {known}") from error
