"""`DeltaMemMiddleware`: tells an agent's model whose memory to use, from the context that the agent runs in."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langgraph.runtime import Runtime

from deltamem_agents import MemoryMode, SessionError
from langchain_deltamem.sessions import SessionChatModel

SessionOf = Callable[[Runtime[Any]], str | None]
"""Reads a session's name off what an agent's run was given; None: the call is stateless."""


class DeltaMemMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Sets session, window and memory mode for each call that an agent makes of its `ChatDeltaMem`.

        agent = create_agent(model, tools, context_schema=User, middleware=[DeltaMemMiddleware(session="user_id")])
        agent.invoke({"messages": […]}, context=User(user_id="alice"))

    It trims nothing: the engine shows the recent messages, and the memory holds the rest. What it sets goes before
    `session_id` in the config and before the model's own settings. A model of another kind, such as a fallback, is
    called as it would be without; put this middleware behind those that change the model.

    Args:
        session: the name of the field of the runtime context that names the session, or a function of the runtime.
            None: sessions are found as without this middleware. A field or function that gives None makes the call
            stateless.
        recent_messages: how many recent messages are also in the prompt, at least; None: the model's own setting.
        memory: "read_write", "read" or "off"; None: the model's own setting.
    """

    def __init__(
        self,
        session: str | SessionOf | None = None,
        *,
        recent_messages: int | None = None,
        memory: MemoryMode | None = None,
    ) -> None:
        super().__init__()
        self.session, self.recent_messages, self.memory = session, recent_messages, memory

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Calls the model with these settings.

        Raises:
            SessionError: the runtime context has no such field.
        """
        return handler(self._remembering(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """`wrap_model_call` for an event loop."""
        return await handler(self._remembering(request))

    def _remembering(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        if not isinstance(request.model, SessionChatModel):
            return request
        settings: dict[str, object] = {"recent_messages": self.recent_messages, "memory": self.memory}
        if self.session is not None:
            session = self._name(self.session, request.runtime)
            settings |= {"memory": "off"} if session is None else {"session_id": session}
        given = {name: value for name, value in settings.items() if value is not None}
        return request.override(model_settings={**request.model_settings, **given})

    def _name(self, session: str | SessionOf, runtime: Runtime[Any]) -> str | None:
        if not isinstance(session, str):
            return session(runtime)
        context = runtime.context
        if isinstance(context, Mapping) and session in context:
            name: str | None = context[session]
        elif hasattr(context, session):
            name = getattr(context, session)
        else:
            found = "none was given" if context is None else f"found a {type(context).__name__} without it"
            raise SessionError(
                f"the runtime context must have a field {session!r}, which names the session, but {found}: "
                f"call the agent with context=…, or give DeltaMemMiddleware a function of the runtime"
            )
        return name
