"""Which session does a call belong to? LangChain's public calls are the only place where the config can be seen."""

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self
from uuid import UUID

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.runnables.config import get_config_list
from pydantic import field_validator

from deltamem_agents import MemoryMode

LONGEST = 200
"""Characters of a label at most."""


class SessionChatModel(BaseChatModel):
    """A chat model whose calls carry `session_id`, `memory` and `thread` as keywords, found in this order.

    - session: the call's `session_id=…`, `config["configurable"]["session_id"]`, with `session_from="thread_id"` its
      "thread_id", the model's own, none;
    - memory: "off" for LangChain's own helper calls (`metadata["lc_source"]`), the call's `memory=…`, the model's own;
    - thread: the call's `thread=…`, `config["configurable"]["thread_id"]`, none. In a subgraph its nodes' names follow:
      agents that are nodes of one graph have histories of their own, and none undoes what another has said.

    Inside a tool, where a subagent or a grader inherits the config of the agent that called it, only a session that is
    named by the call itself counts, or by a subagent's own `DeltaMemMiddleware`: else the call is stateless, and what
    agents tell each other stays out of the user's memory.

    A call without config takes the one it runs in, such as a graph's. In a batch the turns of one session follow each
    other in the order of the inputs.
    """

    session_id: str | None = None
    """Whose memory is used where a call names none."""
    session_from: Literal["session_id", "thread_id"] = "session_id"
    """"thread_id": each LangGraph thread is a session of its own where no session is named."""
    memory: MemoryMode = "read_write"
    """"read_write", "read" (nothing is kept) or "off" (the frozen model)."""
    tool_nodes: tuple[str, ...] = ("tools",)
    """Graph nodes that run tools, by name; the default is `create_agent`'s and `ToolNode`'s."""

    @field_validator("session_id", mode="before")
    @classmethod
    def _named(cls, session_id: object) -> object:
        return session_name(session_id)

    def with_session(self, session_id: str | int | UUID) -> Self:
        """This model, on the same engine, with another session."""
        return self.model_copy(update={"session_id": session_name(session_id)})

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """One reply; see the class for how its session is found."""
        return super().invoke(input, config, stop=stop, **self._resolved(config, kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """`invoke` for an event loop, which it never blocks. Cancelling it keeps nothing of the turn."""
        return await super().ainvoke(input, config, stop=stop, **self._resolved(config, kwargs))

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """The reply as it comes. Leaving early keeps nothing of the turn."""
        return super().stream(input, config, stop=stop, **self._resolved(config, kwargs))

    def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """`stream` for an event loop."""
        return super().astream(input, config, stop=stop, **self._resolved(config, kwargs))

    if not TYPE_CHECKING:  # the base's overloads stay their types

        def stream_events(self, input, config=None, **kwargs):
            """The reply as events; version "v3" goes past `stream`."""
            return super().stream_events(input, config, **self._resolved(config, kwargs))

        def astream_events(self, input, config=None, **kwargs):
            """The reply as events, for an event loop."""
            return super().astream_events(input, config, **self._resolved(config, kwargs))

        def batch(self, inputs, config=None, **kwargs):
            """Replies to many inputs; those of one session follow each other."""
            replies = {}
            for places, some, configs in self._rounds(inputs, config, kwargs):
                replies |= zip(places, super().batch(some, configs, **kwargs), strict=True)
            return [replies[place] for place in range(len(inputs))]

        async def abatch(self, inputs, config=None, **kwargs):
            """`batch` for an event loop."""
            replies = {}
            for places, some, configs in self._rounds(inputs, config, kwargs):
                replies |= zip(places, await super().abatch(some, configs, **kwargs), strict=True)
            return [replies[place] for place in range(len(inputs))]

        def batch_as_completed(self, inputs, config=None, **kwargs):
            """`batch`, with each reply as it comes, and its place."""
            for places, some, configs in self._rounds(inputs, config, kwargs):
                for number, reply in super().batch_as_completed(some, configs, **kwargs):
                    yield places[number], reply

        async def abatch_as_completed(self, inputs, config=None, **kwargs):
            """`batch_as_completed` for an event loop."""
            for places, some, configs in self._rounds(inputs, config, kwargs):
                async for number, reply in super().abatch_as_completed(some, configs, **kwargs):
                    yield places[number], reply

    def _resolved(self, config: RunnableConfig | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The call's keywords with session, memory mode and thread filled in."""
        full = ensure_config(config)
        configurable = full.get("configurable", {})
        label, nodes = configurable.get("thread_id"), _nodes(configurable.get("checkpoint_ns"))
        named = [kwargs.get("session_id")]
        if not set(nodes) & set(self.tool_nodes):
            thread_session = None if label is None or self.session_from == "session_id" else str(label)
            named += [configurable.get("session_id"), thread_session, self.session_id]
        session = session_name(next((name for name in named if name is not None), None))
        memory = "off" if "lc_source" in full.get("metadata", {}) else kwargs.get("memory") or self.memory
        thread = kwargs.get("thread")
        if thread is None:
            graphs = nodes if nodes and nodes[-1] in self.tool_nodes else nodes[:-1]  # the last one makes the call
            thread = _label("/".join([*([] if label is None else [str(label)]), *graphs])) or None
        return {**kwargs, "session_id": session, "memory": memory, "thread": None if session is None else thread}

    def _rounds(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None,
        kwargs: Mapping[str, Any],
    ) -> Iterator[tuple[list[int], list[LanguageModelInput], list[RunnableConfig]]]:
        """A batch in parts that hold no session twice: places, inputs and configs of each."""
        configs = get_config_list(config, len(inputs)) if inputs else []
        call = {name: value for name, value in kwargs.items() if name != "return_exceptions"}
        turns: Counter[str] = Counter()
        rounds: dict[int, list[int]] = {}
        for place, one in enumerate(configs):
            resolved = self._resolved(one, call)
            session = None if resolved["memory"] == "off" else resolved["session_id"]
            rounds.setdefault(0 if session is None else turns[session], []).append(place)
            turns.update([] if session is None else [session])
        for places in rounds.values():
            yield places, [inputs[place] for place in places], [configs[place] for place in places]


def session_name(given: object) -> object:
    """A session's name as text, where it is given as a number or a UUID, as LangGraph takes them."""
    return str(given) if isinstance(given, int | UUID) and not isinstance(given, bool) else given


def _label(path: str) -> str:
    """A thread's label for a path of nodes that the user never gave: what makes no label is shortened by a digest."""
    if len(path) <= LONGEST and path == path.strip() and path.isprintable():
        return path
    kept = "".join(letter for letter in path if letter.isprintable()).strip()
    return f"{kept[: LONGEST - 17].strip()}~{hashlib.sha256(path.encode()).hexdigest()[:16]}"


def _nodes(namespace: object) -> list[str]:
    """The nodes of nested graphs that a call runs in, outermost first: LangGraph joins "name:task" with "|"."""
    parts = namespace.split("|") if isinstance(namespace, str) and namespace else []
    return [part.split(":")[0] for part in parts if not part.isdigit()]
