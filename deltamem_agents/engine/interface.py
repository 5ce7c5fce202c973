"""What an engine can be asked for, in this process or behind a server."""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Protocol, Unpack, runtime_checkable

from deltamem_agents.backbone.tools import ToolLike
from deltamem_agents.engine.inspection import MemoryView
from deltamem_agents.engine.options import ReplyOptions, TurnOptions
from deltamem_agents.engine.records import Recollection, Turn
from deltamem_agents.messages import MessageLike
from deltamem_agents.state import MemoryState
from deltamem_agents.store import SessionInfo, Snapshot, StateStore

QUESTIONS = (
    "What do you know about me?",
    "What is my name?",
    "Where do I live?",
    "What do I do for a living?",
    "What is my pet's name?",
    "What is my favourite food?",
    "What are my plans?",
    "What did I ask you to remember?",
)
"""What a memory is asked where nobody says."""


@runtime_checkable
class EngineCalls(Protocol):
    """Turns and sessions of one model. Every method may be called from any thread or event loop.

    `Engine` adds sessions as objects; `DeltaMemEngine` runs the model in this process, `RemoteEngine` asks a server.
    """

    model_name: str
    """The backbone, as it was named when it was loaded."""
    context: int
    """How many tokens the backbone can attend to."""
    recent_messages: int
    """How many recent messages are also in the prompt, where a call doesn't say."""
    fingerprint: str
    """Of backbone, tokenizer and adapter; states carry it."""
    store: StateStore
    """Where the sessions are. Behind a server it can be read; what changes it are the engine's methods."""

    # --- turns

    def generate(self, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> Turn:
        """Replies to messages, reading and writing the session's memory.

        Args:
            messages: the whole history, a trimmed one, or only what is new; the engine finds out what is new.
            **options: `session`, whose memory it is, and `thread`, `memory`, `recent_messages`; `max_new_tokens`,
                `temperature`, `top_p`, `top_k`, `repetition_penalty`, `no_repeat_ngram_size`, `seed`, `stop`;
                `logprobs`; `response_format`, which the reply is held to; `tools`, with `tool_choice` ("auto", "none",
                "required" or a name) and `parallel_tool_calls`: calls come as `Turn.reply.tool_calls`. See
                `TurnOptions`.

        Raises:
            MessageError: messages that are empty, malformed or too long.
            SessionError: a bad session or thread name.
            ConfigError: another option has an impossible value, or a tool is described badly.
            FingerprintError: the session was written under another backbone or adapter.
            GenerationError: unknown or bad generation options, the call was cancelled, or the model failed.
            StoreError: the store cannot be read or written; then nothing was kept.
        """
        ...

    async def agenerate(self, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> Turn:
        """`generate` for an event loop. Cancelling the task leaves the session as it was."""
        ...

    def stream(self, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> Iterator[str | Turn]:
        """Yields the reply's text as it comes, then the `Turn`. With `logprobs`, texts are `ScoredText`.

        The turn is committed when the reader asks for the `Turn`: leaving before that leaves the session as it was,
        even if the reply is complete by then. A server commits when the reply is complete, unless the reader has left.
        """
        ...

    def astream(self, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> AsyncIterator[str | Turn]:
        """`stream` for an event loop. To leave early, use `contextlib.aclosing`: Python alone closes it late."""
        ...

    def batch(
        self,
        conversations: Sequence[Sequence[MessageLike]],
        *,
        sessions: Sequence[str | None],
        thread: str | None = None,
        **options: Unpack[ReplyOptions],
    ) -> list[Turn]:
        """Replies to many sessions, decoded together: each gets what it would get alone.

        Turns of one session follow each other. If one fails, the error is raised; turns that were complete before it
        are kept.

        Raises:
            SessionError: as many sessions as conversations are needed.
        """
        ...

    def absorb(
        self, messages: Sequence[MessageLike], *, session: str, thread: str | None = None, key: str | None = None
    ) -> str:
        """Writes messages into a session's memory without a reply. They are always taken as new.

        Args:
            messages: what to take in. Those of roles outside the adapter's `absorb_roles` (the bundled adapter's are
                users) are read past, as in `generate`: they are kept in the session and write nothing.
            session: whose memory.
            thread: a label for this line of conversation, where one session has several at a time; by default "main".
            key: makes a retry harmless: what was absorbed under this key before is not absorbed again.

        Returns:
            The id of the snapshot that holds them.
        """
        ...

    async def aabsorb(
        self, messages: Sequence[MessageLike], *, session: str, thread: str | None = None, key: str | None = None
    ) -> str:
        """`absorb` for an event loop."""
        ...

    def count_tokens(self, messages: Sequence[MessageLike], *, tools: Sequence[ToolLike] | None = None) -> int:
        """The tokens of a prompt that shows these messages and tools, the opening of the reply included.

        It is what a call without a session feeds, `Turn.usage.prompt_tokens`; in a session the window decides.

        Raises:
            MessageError: messages that are empty, malformed, or refused by the chat template.
            ConfigError: a tool is described badly.
        """
        ...

    def token_ids(self, text: str) -> list[int]:
        """A text's tokens, without markers around it."""
        ...

    # --- sessions

    def sessions(self, *, prefix: str = "") -> list[SessionInfo]:
        """The sessions in the store whose names start with `prefix`."""
        ...

    def info(self, session: str) -> SessionInfo:
        """Head, times and sizes of a session.

        Raises:
            SessionNotFoundError: there is no such session.
        """
        ...

    def log(self, session: str) -> list[Snapshot]:
        """All commits of a session, oldest first: those of its line, and of lines it has left. States are not loaded.

        Raises:
            SessionNotFoundError: there is no such session.
        """
        ...

    def state(self, session: str) -> MemoryState:
        """A session's memory as it is now.

        Raises:
            SessionNotFoundError: there is no such session.
            FingerprintError: it was written under another backbone or adapter.
        """
        ...

    def fork(self, session: str, new_name: str, *, at: str | None = None) -> None:
        """Begins another session at a commit of this one's line; by default at its head. Both go on independently.

        Raises:
            SessionError: the new name is bad or taken, or `at` is not on the line.
        """
        ...

    def rollback(self, session: str, to: str | None = None, *, turns: int | None = None) -> str | None:
        """Goes back, or forward again, to one of a session's commits: what came after is as if it had not been said.

        The line that is left stays in the log until it is pruned.

        Args:
            session: the session.
            to: id of a snapshot, as in the log.
            turns: instead of `to`: so many turns back.

        Returns:
            The new head; None for the beginning.

        Raises:
            SessionError: `to` is not one of its commits, or so many turns are not kept.
        """
        ...

    def forget(self, session: str) -> None:
        """Deletes a session for good: its memory, its log and its texts.

        Raises:
            SessionNotFoundError: there is no such session.
        """
        ...

    def forget_message(self, session: str, message: str, *, purge: bool = False) -> str | None:
        """Rebuilds a session's memory without one message of its line: as if it had not been said.

        The memory goes back to the state before the message, and everything since is taken in again. It is a change
        like any other: the line that knew the message stays in the log, and `rollback` goes back to it. A message that
        calls tools goes with their results; the reply to a message stays, and what it repeats of it with it.

        Args:
            session: the session.
            message: the message's id, as its framework gave it; or "SNAPSHOT/PLACE": a snapshot's id, as in the log,
                and the message's place among those that the snapshot added, counted from 0.
            purge: also deletes for good all snapshots and texts of the session that knew the message: nothing can go
                back to it any more.

        Returns:
            The new head; None if nothing is left of the line.

        Raises:
            SessionNotFoundError: there is no such session.
            SessionError: the message is not on the session's line, or texts since then are not kept; with `purge`,
                another session was forked from a snapshot that knew it.
        """
        ...

    def remembered(self, session: str, questions: Sequence[str] = QUESTIONS) -> list[Recollection]:
        """What a session answers to questions, out of its memory alone. Nothing is kept, the session is as it was.

        Args:
            session: the session.
            questions: each is asked by itself, as by the user; with no message of the session in the prompt.

        Raises:
            SessionNotFoundError: there is no such session.
        """
        ...

    def export_session(self, session: str, path: str | Path) -> int:
        """Writes a session's line to one file, with all that an import needs to go on; gives the number of commits."""
        ...

    def take_in(self, path: str | Path, *, name: str | None = None) -> str:
        """Takes in what `export_session` wrote, under its own name or another; gives the name.

        Raises:
            StoreError: the file is damaged, was tampered with, or is none of ours.
            SessionError: a session of this name exists.
        """
        ...

    def rebuild(self, session: str) -> int:
        """Makes a session's memory anew from its texts, under this engine's adapter; gives the number of turns.

        Raises:
            SessionNotFoundError: there is no such session.
            SessionError: texts are missing: only `transcript="full"` keeps them all.
        """
        ...

    def inspect(self, session: str, *, writes: bool = True) -> MemoryView:
        """Makes a memory readable: norms, how full it is, and what the last turn wrote, token by token.

        Args:
            session: the session.
            writes: whether to run the last turn again to see its writes.

        Raises:
            SessionNotFoundError: there is no such session.
            FingerprintError: it was written under another backbone or adapter.
        """
        ...

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        ...

    def close(self) -> None:
        """Finishes queued work and closes the store. The engine cannot be used afterwards."""
        ...
