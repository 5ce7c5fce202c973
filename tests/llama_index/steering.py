"""An LLM that does what a test needs: no model here knows when to call a tool, so its replies are held to a grammar."""

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ChatResponseAsyncGen
from llama_index.core.llms.callbacks import llm_chat_callback

from llama_index_deltamem import DeltaMemLLM

ACTION = r"Thought: I need a tool\.\nAction: (tell_time\nAction Input: \{\"zone\": \"(UTC|CET)\"\}|"
ACTION += r"look_up\nAction Input: \{\"city\": \"(Oslo|Rome)\"\})"
ANSWER = r"Thought: I know\.\nAnswer: [a-z]{3,12}"


class ReActLLM(DeltaMemLLM):
    """Calls one of two tools after each question, then answers; which, and with what, the model chooses."""

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await super().achat(messages, **kwargs, response_format=_step(messages), max_new_tokens=80)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return await super().astream_chat(messages, **kwargs, response_format=_step(messages), max_new_tokens=80)


class HandoffLLM(DeltaMemLLM):
    """Hands off to an agent that there is."""

    def _prepare_chat_with_tools(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        prepared = super()._prepare_chat_with_tools(*args, **kwargs)
        for tool in prepared.get("tools", []):
            if tool["function"]["name"] == "handoff":
                tool["function"]["parameters"]["properties"] = {
                    "to_agent": {"enum": ["helper"]},
                    "reason": {"type": "string", "maxLength": 8},
                }
        return prepared


def _step(messages: Sequence[ChatMessage]) -> dict[str, str]:
    observed = (messages[-1].content or "").startswith("Observation:")
    return {"type": "regex", "regex": ANSWER if observed else ACTION}
