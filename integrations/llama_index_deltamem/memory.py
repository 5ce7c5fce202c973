"""`DeltaMemory`: LlamaIndex's chat memory as a handle on a session; what is put there is in the δ-mem state at once."""

import asyncio
import uuid
from contextlib import suppress
from typing import Any, Self
from uuid import UUID

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import BaseMemory
from pydantic import ConfigDict

from deltamem_agents import ConfigError, Engine, Message, SessionError, SessionNotFoundError
from llama_index_deltamem.asked import note_asked, note_put
from llama_index_deltamem.engines import find_engine, register_engine
from llama_index_deltamem.ledger import BEGUN_ANEW, LOOKBACK, MAIN, last_thread, not_yet_said, said, window
from llama_index_deltamem.messages import SessionStamp, StampedMessage, from_engine, new_id, session_name, to_engine


class DeltaMemory(BaseMemory):
    """A session's memory, for chat engines, agents and workflows.

        memory = DeltaMemory(engine=engine, session_id="alice")
        await agent.run("I moved to Oslo.", memory=memory)

    What is put is written into the session's state and stored before `put` returns, once. `get` gives the recent
    messages, stamped, so that a `DeltaMemLLM` knows whose memory to read; everything older is in the state alone. The
    LLM writes nothing, however often it is called.

    It is a handle: JSON, pickles and copies hold the names of the engine and the session, and go on in another process
    that has registered an engine of that name.

    Raises:
        EngineNotFoundError: at the first use, where this process has no such engine.
        ConfigError: no engine is named, or the window is none.
        SessionError: a bad name; messages of another session.
        FingerprintError: at the first use, where another model or adapter wrote the session.
    """

    model_config = ConfigDict(extra="forbid")

    engine_id: str
    """What the engine is registered as."""
    session_id: str
    """Whose memory."""
    window: int
    """How many recent messages are also in the prompt, at least; up to twice as many are."""
    thread: str
    """The label of the conversation within the session; a reset begins another one."""

    def __init__(
        self,
        *,
        session_id: str | int | UUID,
        engine: Engine | None = None,
        engine_id: str | None = None,
        window: int | None = None,
        thread: str | None = None,
    ) -> None:
        session_id = session_name(session_id)
        if engine is not None:
            engine_id = register_engine(engine, engine_id)
        elif engine_id is None:
            raise ConfigError(f"a memory of session {session_id!r} on no engine: give engine=…, or engine_id=…")
        if engine is None and (window is None or thread is None):
            engine = find_engine(engine_id)
        if engine is not None:
            engine.session(session_id, thread=thread)  # checks the names
            window = max(engine.recent_messages, 1) if window is None else window
            thread = last_thread(engine.store, session_id) if thread is None else thread
        if not isinstance(window, int) or isinstance(window, bool) or window < 1:
            raise ConfigError(f"window is {window!r}, expected a whole number, 1 or more: 1 shows what is said last")
        super().__init__(**{"engine_id": engine_id, "session_id": session_id, "window": window, "thread": thread})

    @classmethod
    def class_name(cls) -> str:
        """LlamaIndex's name of the class."""
        return "DeltaMemory"

    @classmethod
    def from_defaults(
        cls,
        *,
        session_id: str | int | UUID | None = None,
        engine: Engine | None = None,
        chat_history: list[ChatMessage] | None = None,
        window: int | None = None,
        token_limit: int | None = None,
        **kwargs: Any,
    ) -> Self:
        """A memory, with a history to begin with.

        Args:
            session_id: whose memory.
            engine: where it is.
            chat_history: what to take in, as `set` does.
            window: how many recent messages are also in the prompt, at least.
            token_limit: without effect: the engine sees to it that prompts fit.
            **kwargs: the constructor's others.

        Raises:
            SessionError: no session is named; LlamaIndex's engines call this when they are given no memory.
        """
        if session_id is None:
            raise SessionError("a DeltaMemory needs a session: pass memory=DeltaMemory(engine=…, session_id=…)")
        memory = cls(session_id=session_id, engine=engine, window=window, **kwargs)
        if chat_history:
            memory.set(chat_history)
        return memory

    @property
    def engine(self) -> Engine:
        """The engine, found by its name.

        Raises:
            EngineNotFoundError: this process has none of this name.
        """
        return find_engine(self.engine_id)

    # --- putting: each message is new, and in the state when the call returns

    def put(self, message: ChatMessage) -> None:
        """Takes a message in. What this memory gave out is there already."""
        self.put_messages([message])

    async def aput(self, message: ChatMessage) -> None:
        """`put` for an event loop."""
        await self.aput_messages([message])

    def put_messages(self, messages: list[ChatMessage]) -> None:
        """Takes messages in, all or none."""
        note_put(messages)
        if new := self._new(messages):
            self.engine.absorb(new, session=self.session_id, thread=self.thread)

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        """`put_messages` for an event loop. Cancelled, it has taken in all or none."""
        note_put(messages)
        if new := await asyncio.to_thread(self._new, messages):
            await self.engine.aabsorb(new, session=self.session_id, thread=self.thread)

    def set(self, messages: list[ChatMessage]) -> None:
        """Takes in what of a history is not here yet; nothing is unsaid by it. An empty one is a `reset`.

        Frameworks replay the history at every turn, whole or trimmed: of what is here already nothing is written again.
        """
        if not messages:
            return self.reset()
        history = self._converted(messages)
        reach = max(2 * len(history), LOOKBACK)
        new = not_yet_said(history, said(self.engine.store, self.session_id, self.thread, last=reach))
        if new:
            self.engine.absorb(list(map(_named, new)), session=self.session_id, thread=self.thread)
        return None

    # --- getting: copies, stamped

    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        """The recent messages, oldest first: copies, which agents may rewrite.

        Args:
            input: the question they are to go with; chat engines with a context give it before they put it.
            **kwargs: what other memories know, without effect.
        """
        return self._noted(input, self._recent())

    async def aget(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        """`get` for an event loop."""
        return self._noted(input, await asyncio.to_thread(self._recent))

    def get_all(self) -> list[ChatMessage]:
        """All messages of this conversation that the store has texts of."""
        messages = said(self.engine.store, self.session_id, self.thread)
        return [from_engine(message, self._stamp) for message in messages]

    # --- forgetting

    def reset(self) -> None:
        """Begins the conversation anew: no earlier message is shown. The state keeps what was said."""
        self.thread = f"{BEGUN_ANEW}{uuid.uuid4().hex[:12]}"

    async def areset(self) -> None:
        """`reset` for an event loop."""
        self.reset()

    def forget(self) -> None:
        """Deletes the session for good: its state, its log and its texts."""
        with suppress(SessionNotFoundError):
            self.engine.forget(self.session_id)
        self.thread = MAIN

    async def aforget(self) -> None:
        """`forget` for an event loop."""
        await asyncio.to_thread(self.forget)

    # --- inside

    @property
    def _stamp(self) -> SessionStamp:
        return SessionStamp(
            engine_id=self.engine_id, session_id=self.session_id, thread=self.thread, window=self.window
        )

    def _recent(self) -> list[ChatMessage]:
        messages = window(self.engine.store, self.session_id, self.thread, recent=self.window)
        return [from_engine(message, self._stamp) for message in messages]

    def _noted(self, input: str | None, messages: list[ChatMessage]) -> list[ChatMessage]:
        if input is not None and not messages:
            note_asked(input, self._stamp)
        return messages

    def _converted(self, messages: list[ChatMessage]) -> list[Message]:
        for position, message in enumerate(messages):
            if isinstance(message, StampedMessage) and message.delta_session.session_id != self.session_id:
                raise SessionError(
                    f"message {position} is from the memory of session {message.delta_session.session_id!r}, and this "
                    f"is session {self.session_id!r}: to go on from there, fork it (engine.session(name).fork(new)); "
                    "to repeat what was said, pass a plain ChatMessage(role=…, content=…)"
                )
        return to_engine(messages, session=self.session_id)

    def _new(self, messages: list[ChatMessage]) -> list[Message]:
        if not messages:
            return []
        converted = self._converted(messages)
        ids = {message.id for message in converted if message.id is not None}
        known = self.engine.store.find(self.session_id, ids) if ids else {}
        return [_named(message) for message in converted if message.id not in known]


def _named(message: Message) -> Message:
    return message if message.id is not None else message.model_copy(update={"id": new_id()})
