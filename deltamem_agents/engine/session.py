"""A session by its name: turns, and the line of commits behind it."""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self, Unpack, runtime_checkable

from deltamem_agents.engine.inspection import MemoryView
from deltamem_agents.engine.interface import QUESTIONS, EngineCalls
from deltamem_agents.engine.options import ReplyOptions
from deltamem_agents.engine.records import MAIN_THREAD, Recollection, Turn, check_session_name
from deltamem_agents.messages import MessageLike
from deltamem_agents.state import MemoryState
from deltamem_agents.store import SessionInfo, Snapshot


class Session:
    """A branch of commits, as in git: each turn is one, with the memory's state after it.

    It need not exist yet: the first turn begins it.

    Args:
        engine: whose session it is.
        name: its name.
        thread: the label of its turns; by default "main".

    Raises:
        SessionError: a bad name.
    """

    def __init__(self, engine: EngineCalls, name: str, *, thread: str | None = None) -> None:
        self.engine, self.name = engine, check_session_name(name)
        self.thread = MAIN_THREAD if thread is None else check_session_name(thread, kind="thread")

    def __repr__(self) -> str:
        """Names it."""
        return f"Session({self.name!r}, thread={self.thread!r})"

    # --- turns: what the engine offers, with session and thread filled in

    def generate(self, messages: Sequence[MessageLike], **options: Unpack[ReplyOptions]) -> Turn:
        """See `EngineCalls.generate`."""
        return self.engine.generate(messages, session=self.name, thread=self.thread, **options)

    async def agenerate(self, messages: Sequence[MessageLike], **options: Unpack[ReplyOptions]) -> Turn:
        """See `EngineCalls.agenerate`."""
        return await self.engine.agenerate(messages, session=self.name, thread=self.thread, **options)

    def stream(self, messages: Sequence[MessageLike], **options: Unpack[ReplyOptions]) -> Iterator[str | Turn]:
        """See `EngineCalls.stream`."""
        return self.engine.stream(messages, session=self.name, thread=self.thread, **options)

    def astream(self, messages: Sequence[MessageLike], **options: Unpack[ReplyOptions]) -> AsyncIterator[str | Turn]:
        """See `EngineCalls.astream`."""
        return self.engine.astream(messages, session=self.name, thread=self.thread, **options)

    def absorb(self, messages: Sequence[MessageLike], *, key: str | None = None) -> str:
        """See `EngineCalls.absorb`."""
        return self.engine.absorb(messages, session=self.name, thread=self.thread, key=key)

    async def aabsorb(self, messages: Sequence[MessageLike], *, key: str | None = None) -> str:
        """See `EngineCalls.aabsorb`."""
        return await self.engine.aabsorb(messages, session=self.name, thread=self.thread, key=key)

    # --- the line of commits

    @property
    def info(self) -> SessionInfo:
        """Head, times and sizes.

        Raises:
            SessionNotFoundError: it has not begun, or was forgotten.
        """
        return self.engine.info(self.name)

    @property
    def state(self) -> MemoryState:
        """The memory after the last turn; see `EngineCalls.state`."""
        return self.engine.state(self.name)

    def log(self) -> list[Snapshot]:
        """See `EngineCalls.log`."""
        return self.engine.log(self.name)

    def fork(self, new_name: str, *, at: str | None = None) -> "Session":
        """Begins another session; see `EngineCalls.fork`."""
        self.engine.fork(self.name, new_name, at=at)
        return Session(self.engine, new_name)

    def rollback(self, to: str | None = None, *, turns: int | None = None) -> str | None:
        """See `EngineCalls.rollback`."""
        return self.engine.rollback(self.name, to, turns=turns)

    def forget(self) -> None:
        """Deletes it for good; see `EngineCalls.forget`."""
        self.engine.forget(self.name)

    def forget_message(self, message: str, *, purge: bool = False) -> str | None:
        """See `EngineCalls.forget_message`."""
        return self.engine.forget_message(self.name, message, purge=purge)

    def remembered(self, questions: Sequence[str] = QUESTIONS) -> list[Recollection]:
        """See `EngineCalls.remembered`."""
        return self.engine.remembered(self.name, questions)

    def export(self, path: str | Path) -> int:
        """See `EngineCalls.export_session`."""
        return self.engine.export_session(self.name, path)

    def rebuild(self) -> int:
        """See `EngineCalls.rebuild`."""
        return self.engine.rebuild(self.name)

    def inspect(self, *, writes: bool = True) -> MemoryView:
        """See `EngineCalls.inspect`."""
        return self.engine.inspect(self.name, writes=writes)


@runtime_checkable
class Engine(EngineCalls, Protocol):
    """What runs a model with memory: `DeltaMemEngine` in this process, `RemoteEngine` behind a server."""

    def session(self, name: str, *, thread: str | None = None) -> Session:
        """A session as an object: its turns, log, forks, rollback, export. It need not exist yet."""
        return Session(self, name, thread=thread)

    def import_session(self, path: str | Path, *, name: str | None = None) -> Session:
        """Takes in what `Session.export` wrote, under its own name or another; see `EngineCalls.take_in`."""
        return Session(self, self.take_in(path, name=name))

    def __enter__(self) -> Self:
        """Returns the engine, for `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the engine."""
        self.close()
