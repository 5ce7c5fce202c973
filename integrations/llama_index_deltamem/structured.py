"""Structured output as it streams: the reply's text is held to the schema, and read while it comes."""

import json
from collections.abc import AsyncGenerator, Generator
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel

CALLS = (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION)
"""Modes in which LlamaIndex asks for a tool call; streaming, it would not insist on one."""


class StructuredStreams(FunctionCallingLLM):
    """An LLM whose streamed objects are valid by their class at the end, and grow until then.

    Whole objects come as forced tool calls, which LlamaIndex's own programs see to; but not of classes that refer to
    themselves, whose calls those programs cannot read.
    """

    def structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """An object of a class."""
        if self.pydantic_program_mode not in CALLS or "$ref" not in output_cls.model_json_schema():
            return super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        messages, keywords = self._held_to(output_cls, prompt, llm_kwargs, prompt_args)
        return output_cls.model_validate_json(self.chat(messages, **keywords).message.content or "")

    async def astructured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """`structured_predict` for an event loop."""
        if self.pydantic_program_mode not in CALLS or "$ref" not in output_cls.model_json_schema():
            return await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        messages, keywords = self._held_to(output_cls, prompt, llm_kwargs, prompt_args)
        return output_cls.model_validate_json((await self.achat(messages, **keywords)).message.content or "")

    def _structured_stream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        if self.pydantic_program_mode not in CALLS:
            yield from super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)  # type: ignore[arg-type]
            return
        messages, keywords = self._held_to(output_cls, prompt, llm_kwargs, prompt_args)
        reader = _ObjectReader(output_cls)
        for response in self.stream_chat(messages, **keywords):
            yield reader.read(response)

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        if self.pydantic_program_mode not in CALLS:
            return await super()._structured_astream_call(output_cls, prompt, llm_kwargs, **prompt_args)  # type: ignore[arg-type]
        messages, keywords = self._held_to(output_cls, prompt, llm_kwargs, prompt_args)
        responses = await self.astream_chat(messages, **keywords)
        reader = _ObjectReader(output_cls)

        async def objects() -> AsyncGenerator[Any, None]:
            async for response in responses:
                yield reader.read(response)

        return objects()

    def _held_to(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        """Messages with the schema in front, and the call's keywords."""
        schema = output_cls.model_json_schema()
        text = f"Reply with a JSON object by this schema:\n{json.dumps(schema, ensure_ascii=False)}"
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        held = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema, "strict": False}}}
        return [ChatMessage(role=MessageRole.SYSTEM, content=text), *messages], {**(llm_kwargs or {}), **held}


class _ObjectReader:
    """Reads objects from a growing text."""

    def __init__(self, output_cls: type[BaseModel]) -> None:
        self.output_cls = output_cls
        self.found: list[Any] | None = None

    def read(self, response: ChatResponse) -> Any:
        read = process_streaming_objects(response, self.output_cls, cur_objects=self.found)
        self.found = read if isinstance(read, list) else [read]
        return self.found[0]
