"""Agents that do what a test needs: middlewares that set one thing for each call of the model."""

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import HumanMessage


class Steering(AgentMiddleware):
    """Changes each request."""

    def steered(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        raise NotImplementedError

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        return handler(self.steered(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        return await handler(self.steered(request))


class Seeds(Steering):
    """Another seed for each call, so that asking again gets another reply."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()

    def steered(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        return request.override(model_settings={**request.model_settings, "seed": next(self.numbers)})


class Calls(Steering):
    """The model must call these tools in turn after each question, then answer: no model here knows when to."""

    def __init__(self, *tools: str) -> None:
        super().__init__()
        self.wanted = tools

    def steered(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        asked = max(n for n, message in enumerate(request.messages) if isinstance(message, HumanMessage))
        done = (len(request.messages) - asked - 1) // 2
        if done < len(self.wanted):
            settings = {**request.model_settings, "max_new_tokens": 200}
            return request.override(tool_choice=self.wanted[done], model_settings=settings)
        return request.override(tool_choice="none")
