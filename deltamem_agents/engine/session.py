"""A session by its name: turns, and the line of commits behind it."""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_agents.engine.inspection import MemoryView
from deltamem_agents.engine.records import MAIN_THREAD, Turn, check_session_name
from deltamem_agents.errors import ConflictError, SessionError, SessionNotFoundError
from deltamem_agents.messages import MessageLike
from deltamem_agents.state import MemoryState
from deltamem_agents.store import SessionInfo, Snapshot, StateStore, export_session

if TYPE_CHECKING:
    from deltamem_agents.engine.engine import DeltaMemEngine


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

    def __init__(self, engine: "DeltaMemEngine", name: str, *, thread: str | None = None) -> None:
        self.engine, self.name = engine, check_session_name(name)
        self.thread = MAIN_THREAD if thread is None else check_session_name(thread, kind="thread")

    def __repr__(self) -> str:
        """Names it."""
        return f"Session({self.name!r}, thread={self.thread!r})"

    # --- turns: what the engine offers, with session and thread filled in

    def generate(self, messages: Sequence[MessageLike], **options: object) -> Turn:
        """See `DeltaMemEngine.generate`."""
        return self.engine.generate(messages, session=self.name, thread=self.thread, **options)  # type: ignore[arg-type]

    async def agenerate(self, messages: Sequence[MessageLike], **options: object) -> Turn:
        """See `DeltaMemEngine.agenerate`."""
        return await self.engine.agenerate(messages, session=self.name, thread=self.thread, **options)  # type: ignore[arg-type]

    def stream(self, messages: Sequence[MessageLike], **options: object) -> Iterator[str | Turn]:
        """See `DeltaMemEngine.stream`."""
        return self.engine.stream(messages, session=self.name, thread=self.thread, **options)  # type: ignore[arg-type]

    def astream(self, messages: Sequence[MessageLike], **options: object) -> AsyncIterator[str | Turn]:
        """See `DeltaMemEngine.astream`."""
        return self.engine.astream(messages, session=self.name, thread=self.thread, **options)  # type: ignore[arg-type]

    def absorb(self, messages: Sequence[MessageLike], *, key: str | None = None) -> str:
        """See `DeltaMemEngine.absorb`."""
        return self.engine.absorb(messages, session=self.name, thread=self.thread, key=key)

    async def aabsorb(self, messages: Sequence[MessageLike], *, key: str | None = None) -> str:
        """See `DeltaMemEngine.aabsorb`."""
        return await self.engine.aabsorb(messages, session=self.name, thread=self.thread, key=key)

    # --- the line of commits

    @property
    def info(self) -> SessionInfo:
        """Head, times and sizes.

        Raises:
            SessionNotFoundError: it has not begun, or was forgotten.
        """
        info = self.engine.store.session(self.name)
        if info is None:
            raise SessionNotFoundError(f"there is no session {self.name!r} in this store: see engine.sessions()")
        return info

    @property
    def state(self) -> MemoryState:
        """The memory after the last turn; see `DeltaMemEngine.state`."""
        return self.engine.state(self.name)

    def log(self) -> list[Snapshot]:
        """All its commits, oldest first: those of its line, and of lines it has left. States are not loaded."""
        return self.engine.store.log(self.name)

    def fork(self, new_name: str, *, at: str | None = None) -> "Session":
        """Begins another session at a commit of this one's line; by default at its head. Both go on independently.

        Raises:
            SessionError: the new name is bad or taken, or `at` is not on the line.
        """
        check_session_name(new_name)
        self.engine.on_session(self.name, lambda: self.engine.store.fork(self.name, new_name, at=at))
        return Session(self.engine, new_name)

    def rollback(self, to: str | None = None, *, turns: int | None = None) -> str | None:
        """Goes back, or forward again, to one of its commits: what came after is as if it had not been said.

        The line that is left stays in the log until it is pruned.

        Args:
            to: id of a snapshot, as in the log.
            turns: instead of `to`: so many turns back.

        Returns:
            The new head; None for the beginning.

        Raises:
            SessionError: `to` is not one of its commits, or so many turns are not kept.
        """
        return self.engine.on_session(self.name, lambda: rolled_back(self.engine.store, self.name, to, turns=turns))

    def forget(self) -> None:
        """Deletes it for good; see `DeltaMemEngine.forget`."""
        self.engine.forget(self.name)

    def export(self, path: str | Path) -> int:
        """Writes its line to one file, with all that an import needs to go on; gives the number of commits."""
        return self.engine.on_session(self.name, lambda: export_session(self.engine.store, self.name, path))

    def rebuild(self) -> int:
        """See `DeltaMemEngine.rebuild`."""
        return self.engine.rebuild(self.name)

    def inspect(self, *, writes: bool = True) -> MemoryView:
        """Makes the memory readable: norms, how full it is, and what the last turn wrote, token by token.

        Args:
            writes: whether to run the last turn again to see its writes.
        """
        return self.engine.inspect(self.name, writes=writes)


def rolled_back(store: StateStore, name: str, to: str | None = None, *, turns: int | None = None) -> str | None:
    """Moves a session's head to one of its commits, or so many turns back; gives the new head.

    Raises:
        SessionError: not exactly one of `to` and `turns`, a foreign commit, or turns that are not kept.
        SessionNotFoundError: there is no such session.
    """
    info = store.session(name)
    if info is None:
        raise SessionNotFoundError(f"there is no session {name!r} in this store: check the name")
    if (to is None) == (turns is None):
        raise SessionError("rollback takes a snapshot id, or turns=…: give exactly one of them")
    if turns is not None:
        to = _back(store, info, turns)
    elif to not in {turn.id for turn in store.log(name)}:
        raise SessionError(
            f"snapshot {to!r} is not one of session {name!r}: it is another session's, or was pruned; see its log"
        )
    try:
        store.move_head(name, to, expected=info.head)
    except ConflictError:
        return rolled_back(store, name, to)  # somebody was faster; the commit is as much the session's as before
    return to


def _back(store: StateStore, info: SessionInfo, turns: int) -> str | None:
    line = [] if info.head is None else store.line(info.head)
    if not 0 <= turns <= info.turns:
        raise SessionError(f"cannot go back {turns} turns: session {info.name!r} has {info.turns}")
    if turns < len(line):
        return line[-1 - turns].id
    if turns == info.turns and (not line or line[0].start == 0):
        return None
    raise SessionError(
        f"cannot go back {turns} turns: of the {info.turns} of session {info.name!r} the last {len(line)} are kept, "
        "and the state before them was pruned; keep more snapshots next time (keep_snapshots)"
    )
