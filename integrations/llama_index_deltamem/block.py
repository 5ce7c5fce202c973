"""`DeltaMemoryBlock`: for LlamaIndex's own `Memory`, which hands over what its window has no room for."""

from typing import Any
from uuid import UUID

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import BaseMemoryBlock
from pydantic import ConfigDict, PrivateAttr

from deltamem_agents import ConfigError, Engine, Message
from llama_index_deltamem.engines import find_engine, register_engine
from llama_index_deltamem.messages import new_id, session_name, to_engine

THREAD = "llama-index-memory"
"""The label of what came through a block, within its session."""


class DeltaMemoryBlock(BaseMemoryBlock[str]):
    """Takes the turns that leave a `Memory` into a session's state, instead of into texts for the prompt.

        block = DeltaMemoryBlock(engine=engine, session_id="alice")
        memory = Memory.from_defaults(token_limit=600, memory_blocks=[block])
        llm = DeltaMemLLM(engine=engine, session_id="alice")

    It adds nothing to the prompt. In agents an LLM finds the session through the memory in the run's context; for chat
    engines bind it to the session, as above.

    `Memory` itself keeps its texts in a database of its own, and loses them on a `Context` round trip unless it is
    told where; `DeltaMemory` doesn't.
    """

    model_config = ConfigDict(extra="forbid")

    name: str = "delta_memory"
    """The block's name in its memory."""
    engine_id: str
    """What the engine is registered as."""
    session_id: str
    """Whose memory."""
    _run: str = PrivateAttr(default_factory=new_id)
    _number: int = PrivateAttr(default=0)
    _waiting: list[tuple[str, list[Message]]] = PrivateAttr(default_factory=list)  # what failed, under its key

    def __init__(
        self,
        *,
        session_id: str | int | UUID,
        engine: Engine | None = None,
        engine_id: str | None = None,
        **data: Any,
    ) -> None:
        session_id = session_name(session_id)
        if engine is not None:
            engine_id = register_engine(engine, engine_id)
            engine.session(session_id)  # checks the name
        elif engine_id is None:
            raise ConfigError(f"a memory block of session {session_id!r} on no engine: give engine=…, or engine_id=…")
        super().__init__(**{**data, "engine_id": engine_id, "session_id": session_id})

    @property
    def engine(self) -> Engine:
        """The engine, found by its name.

        Raises:
            EngineNotFoundError: this process has none of this name.
        """
        return find_engine(self.engine_id)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return ""  # the state is read inside the model

    async def _aput(self, messages: list[ChatMessage]) -> None:
        """Takes messages in, once: what fails is tried again with the next ones, under the same key.

        `Memory` hands over what it has put away already, so nothing may be lost here.
        """
        said = to_engine(messages)
        failed = self._waiting[-1][1] if self._waiting else []
        if [message.digest() for message in said] != [message.digest() for message in failed]:
            self._number += 1
            self._waiting.append((f"{self._run} {self._number}", said))
        for one in list(self._waiting):
            key, evicted = one
            await self.engine.aabsorb(evicted, session=self.session_id, thread=THREAD, key=key)
            if one in self._waiting:
                self._waiting.remove(one)
