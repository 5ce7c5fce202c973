"""The engine: a frozen model, its memory, and the sessions that live in a store."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self, TypeVar, cast

import torch
from transformers import PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel, backbone_fingerprint
from deltamem_agents.adapter.default import default_adapter_path
from deltamem_agents.backbone.load import BUNDLED, context_length, end_tokens, load_backbone, tokenizer_fingerprint
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.backbone.tools import ToolLike, ToolUse
from deltamem_agents.engine.inspection import MemoryView, inspect_session
from deltamem_agents.engine.overlaps import CallOrder
from deltamem_agents.engine.planning import Planner
from deltamem_agents.engine.prompts import PromptWriter
from deltamem_agents.engine.rebuilding import rebuild_session
from deltamem_agents.engine.records import (
    MAIN_THREAD,
    MEMORY_MODES,
    TRANSCRIPTS,
    MemoryMode,
    Request,
    Transcript,
    Turn,
    check_session_name,
)
from deltamem_agents.engine.service import TurnService
from deltamem_agents.engine.session import Session
from deltamem_agents.engine.turns import TurnRunner
from deltamem_agents.errors import ConfigError, SessionError, SessionNotFoundError
from deltamem_agents.generation import GenerationOptions
from deltamem_agents.messages import MessageLike, as_messages
from deltamem_agents.state import MemoryState
from deltamem_agents.store import SessionInfo, StateStore, import_session, open_store

T = TypeVar("T")


class DeltaMemEngine:
    """Gives a frozen model persistent memory: name a session, and what was said in it is remembered.

    All model work runs on one thread of the engine's own; every method may be called from any thread or event loop.

    Args:
        model: a backbone with its adapter attached.
        tokenizer: the backbone's tokenizer, with a chat template.
        store: where sessions live: a store, a path or database URL, ":memory:", or None for the default file.
        recent_messages: how many recent messages are also in the prompt, at least; the window holds up to twice as
            many. 0: nothing but what is new is in the prompt, and the memory alone knows the rest.
        max_prompt_tokens: limit on a prompt; None: what the backbone's context holds, less the reply.
        transcript: how long the store keeps messages' texts: as long as their snapshots ("window"), for ever, with all
            snapshots ("full"), or not at all ("none": then there is no window either).
        keep_snapshots: how many turns one can go back: of a session's line this many snapshots are kept, and as many of
            lines it has left. None: all.
        cache_bytes: budget for KV caches of sessions between turns.
        max_batch: how many turns, of any callers, decode together at most.

    Raises:
        ConfigError: an option has an impossible value.
        StoreError: the store cannot be opened.
        MessageError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: DeltaMemModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        store: StateStore | str | Path | None = None,
        recent_messages: int = 8,
        max_prompt_tokens: int | None = None,
        transcript: Transcript = "window",
        keep_snapshots: int | None = 64,
        cache_bytes: int = 2**30,
        max_batch: int = 16,
    ) -> None:
        if transcript not in TRANSCRIPTS:
            raise ConfigError(f"transcript is {transcript!r}, expected one of {', '.join(TRANSCRIPTS)}")
        if max_prompt_tokens is not None:
            _check_count("max_prompt_tokens", max_prompt_tokens, at_least=1)
        _check_count("recent_messages", recent_messages, at_least=0)
        _check_count("cache_bytes", cache_bytes, at_least=0)
        _check_count("max_batch", max_batch, at_least=1)
        if keep_snapshots is not None:
            _check_count("keep_snapshots", keep_snapshots, at_least=1)
        self.model, self.tokenizer = model, tokenizer
        self.recent_messages = recent_messages
        backbone = model.backbone
        self.context = context_length(backbone)
        self.fingerprint = (
            f"{backbone_fingerprint(backbone)}+{tokenizer_fingerprint(tokenizer)}+{model.adapter.fingerprint()}"
        )
        self._writer = PromptWriter(ChatTemplate(tokenizer), model.adapter.config)
        self._max_prompt_tokens, self._transcript = max_prompt_tokens, transcript
        self._keep_snapshots = None if transcript == "full" else keep_snapshots
        self._calls = CallOrder()
        self.store = open_store(store)
        runner = self._runner_on(self.store, cache_bytes=cache_bytes)
        self._service = TurnService(runner, max_batch=max_batch)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        adapter: DeltaMemAdapter | str | Path | None = None,
        store: StateStore | str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
        model_kwargs: dict[str, object] | None = None,
        recent_messages: int = 8,
        max_prompt_tokens: int | None = None,
        transcript: Transcript = "window",
        keep_snapshots: int | None = 64,
        cache_bytes: int = 2**30,
        max_batch: int = 16,
    ) -> Self:
        """Loads a model and its adapter; the other arguments are those of the class.

        Args:
            model: "bundled", a folder, or a hub id of a causal LM.
            adapter: an adapter, its folder or hub id; None takes the default one, which exists for the bundled model.
            store: where sessions live.
            device: where to put the model; None: on a GPU if there is one.
            dtype: of the backbone's weights. States are float32 always.
            model_kwargs: anything else transformers' `from_pretrained` takes.
            recent_messages: how many recent messages are also in the prompt.
            max_prompt_tokens: limit on a prompt.
            transcript: which messages' texts the store keeps.
            keep_snapshots: how many turns one can go back.
            cache_bytes: budget for KV caches of sessions between turns.
            max_batch: how many turns decode together at most.

        Raises:
            BackboneError: the model cannot be found or loaded.
            AdapterError: the adapter cannot be found or loaded, or does not fit.
        """
        if adapter is None:
            adapter = default_adapter_path(model)
        if not isinstance(adapter, DeltaMemAdapter):
            adapter = DeltaMemAdapter.from_pretrained(adapter)
        backbone, tokenizer = load_backbone(model, device=device, dtype=dtype, model_kwargs=model_kwargs)
        return cls(
            DeltaMemModel(backbone, adapter),
            tokenizer,
            store=store,
            recent_messages=recent_messages,
            max_prompt_tokens=max_prompt_tokens,
            transcript=transcript,
            keep_snapshots=keep_snapshots,
            cache_bytes=cache_bytes,
            max_batch=max_batch,
        )

    @classmethod
    def bundled(
        cls,
        *,
        store: StateStore | str | Path | None = None,
        recent_messages: int = 8,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
        model_kwargs: dict[str, object] | None = None,
    ) -> Self:
        """The bundled model with its default adapter. The first call fetches the model, about 93 MB."""
        return cls.from_pretrained(
            BUNDLED,
            store=store,
            recent_messages=recent_messages,
            device=device,
            dtype=dtype,
            model_kwargs=model_kwargs,
        )

    # --- turns

    def generate(
        self,
        messages: Sequence[MessageLike],
        *,
        session: str | None = None,
        thread: str | None = None,
        memory: MemoryMode = "read_write",
        recent_messages: int | None = None,
        **options: object,
    ) -> Turn:
        """Replies to messages, reading and writing the session's memory.

        Args:
            messages: the whole history, a trimmed one, or only what is new; the engine finds out what is new.
            session: whose memory; None: the frozen model without memory.
            thread: a label for this line of conversation, where one session has several at a time; by default "main".
            memory: "read_write", "read" (nothing is kept) or "off" (the frozen model).
            recent_messages: overrides the engine's, for this call.
            **options: `max_new_tokens`, `temperature`, `top_p`, `top_k`, `repetition_penalty`, `seed`, `stop`;
                `response_format`, which the reply is held to; `tools`, with `tool_choice` ("auto", "none", "required"
                or a name) and `parallel_tool_calls`: calls come as `Turn.reply.tool_calls`.

        Raises:
            MessageError: messages that are empty, malformed, too long, or leave nothing to reply to.
            SessionError: a bad session or thread name.
            ConfigError: another option has an impossible value, or a tool is described badly.
            FingerprintError: the session was written under another backbone or adapter.
            GenerationError: unknown or bad generation options, the call was cancelled, or the model failed.
            StoreError: the store cannot be read or written; then nothing was kept.
        """
        request = self._request(messages, session, thread, memory, recent_messages, options)
        return self._service.run(request)

    async def agenerate(
        self,
        messages: Sequence[MessageLike],
        *,
        session: str | None = None,
        thread: str | None = None,
        memory: MemoryMode = "read_write",
        recent_messages: int | None = None,
        **options: object,
    ) -> Turn:
        """`generate` for an event loop. Cancelling the task leaves the session as it was."""
        request = self._request(messages, session, thread, memory, recent_messages, options)
        return await self._service.arun(request)

    def stream(
        self,
        messages: Sequence[MessageLike],
        *,
        session: str | None = None,
        thread: str | None = None,
        memory: MemoryMode = "read_write",
        recent_messages: int | None = None,
        **options: object,
    ) -> Iterator[str | Turn]:
        """Yields the reply's text as it comes, then the `Turn`.

        The turn is committed when the reader asks for the `Turn`: leaving before that leaves the session as it was,
        even if the reply is complete by then.
        """
        return self._service.stream(self._request(messages, session, thread, memory, recent_messages, options))

    def astream(
        self,
        messages: Sequence[MessageLike],
        *,
        session: str | None = None,
        thread: str | None = None,
        memory: MemoryMode = "read_write",
        recent_messages: int | None = None,
        **options: object,
    ) -> AsyncIterator[str | Turn]:
        """`stream` for an event loop. To leave early, use `contextlib.aclosing`: Python alone closes it late."""
        return self._service.astream(self._request(messages, session, thread, memory, recent_messages, options))

    def count_tokens(self, messages: Sequence[MessageLike], *, tools: Sequence[ToolLike] | None = None) -> int:
        """The tokens of a prompt that shows these messages and tools, the opening of the reply included.

        It is what a call without a session feeds, `Turn.usage.prompt_tokens`; in a session the window decides.

        Raises:
            MessageError: messages that are empty, malformed, or refused by the chat template.
            ConfigError: a tool is described badly.
        """
        shown, use = as_messages(messages), ToolUse.parse(tools)
        return len(self._writer.render(shown, (), write=False, tools=use.shown, opened=True).ids)

    def batch(
        self,
        conversations: Sequence[Sequence[MessageLike]],
        *,
        sessions: Sequence[str | None],
        memory: MemoryMode = "read_write",
        recent_messages: int | None = None,
        **options: object,
    ) -> list[Turn]:
        """Replies to many sessions, decoded together: each gets what it would get alone.

        Turns of one session follow each other.

        If one fails, the error is raised; turns that were complete before it are kept.

        Raises:
            SessionError: as many sessions as conversations are needed.
        """
        if len(conversations) != len(sessions):
            found = f"{len(conversations)} conversations for {len(sessions)} sessions"
            raise SessionError(f"{found}: give one session each")
        requests = [
            self._request(messages, session, None, memory, recent_messages, options)
            for messages, session in zip(conversations, sessions, strict=True)
        ]
        return self._service.batch(requests)

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
        return self._service.absorb(self._absorption(messages, session, thread, key))

    async def aabsorb(
        self, messages: Sequence[MessageLike], *, session: str, thread: str | None = None, key: str | None = None
    ) -> str:
        """`absorb` for an event loop."""
        return await self._service.aabsorb(self._absorption(messages, session, thread, key))

    # --- sessions

    def sessions(self, *, prefix: str = "") -> list[SessionInfo]:
        """The sessions in the store whose names start with `prefix`."""
        return self.store.sessions(prefix=prefix)

    def state(self, session: str) -> MemoryState:
        """A session's memory as it is now.

        Raises:
            SessionNotFoundError: there is no such session.
            FingerprintError: it was written under another backbone or adapter.
        """
        info = self.store.session(check_session_name(session))
        if info is None or info.head is None:
            raise SessionNotFoundError(f"there is no session {session!r} in this store: see sessions()")
        return MemoryState.from_bytes(self.store.snapshot(info.head).state, fingerprint=self.fingerprint)

    def session(self, name: str, *, thread: str | None = None) -> Session:
        """A session as an object: its turns, log, forks, rollback, export. It need not exist yet."""
        return Session(self, name, thread=thread)

    def forget(self, session: str) -> None:
        """Deletes a session for good: its memory, its log and its texts.

        Raises:
            SessionNotFoundError: there is no such session.
        """
        self._service.forget(check_session_name(session))

    def import_session(self, path: str | Path, *, name: str | None = None) -> Session:
        """Takes in what `Session.export` wrote, under its own name or another.

        Raises:
            StoreError: the file is damaged, was tampered with, or is none of ours.
            SessionError: a session of this name exists.
        """
        return Session(self, import_session(self.store, path, name=name))

    def rebuild(self, session: str) -> int:
        """Makes a session's memory anew from its texts, under this engine's adapter; gives the number of turns.

        Raises:
            SessionNotFoundError: there is no such session.
            SessionError: texts are missing: only `transcript="full"` keeps them all.
        """

        def work() -> int:
            return rebuild_session(
                self.store, session, recent_messages=self.recent_messages, runner_on=self._runner_on
            )

        return self.on_session(session, work)

    def inspect(self, session: str, *, writes: bool = True) -> MemoryView:
        """Makes a session's memory readable; see `Session.inspect`.

        Raises:
            SessionNotFoundError: there is no such session.
            FingerprintError: it was written under another backbone or adapter.
        """

        def work() -> MemoryView:
            return inspect_session(
                self.model,
                self.store,
                self._writer,
                session,
                fingerprint=self.fingerprint,
                recent_messages=self.recent_messages,
                writes=writes,
            )

        return self.on_session(session, work)

    def on_session(self, session: str, work: Callable[[], T]) -> T:
        """Does something to a session between two of its turns, on the model's thread."""
        return self._service.call(work, sessions=[check_session_name(session)])

    def close(self) -> None:
        """Finishes queued work and closes the store. The engine cannot be used afterwards."""
        self._service.close()
        self.store.close()

    def __enter__(self) -> Self:
        """Returns the engine, for `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the engine."""
        self.close()

    # --- inside

    def _runner_on(self, store: StateStore, *, cache_bytes: int = 2**28) -> TurnRunner:
        planner = Planner(
            store,
            self._writer,
            fingerprint=self.fingerprint,
            context=self.context,
            max_prompt_tokens=self._max_prompt_tokens,
            transcript=self._transcript,
            overlaps=self._calls.overlaps,
        )
        return TurnRunner(
            self.model,
            self._writer,
            planner,
            store,
            ends=end_tokens(self.model.backbone, self.tokenizer),
            fingerprint=self.fingerprint,
            transcript=self._transcript,
            cache_bytes=cache_bytes,
            keep_snapshots=self._keep_snapshots,
            calls=self._calls,
        )

    def _absorption(
        self, messages: Sequence[MessageLike], session: str, thread: str | None, key: str | None
    ) -> Request:
        check_session_name(session)
        if key is not None and not key:
            raise SessionError("the key of an absorption is empty: give a text that names it, or None")
        request = self._request(messages, session, thread, "read_write", None, {"max_new_tokens": 1})
        return replace(request, key=key)

    def _request(
        self,
        messages: Sequence[MessageLike],
        session: str | None,
        thread: str | None,
        memory: MemoryMode,
        recent_messages: int | None,
        options: dict[str, object],
    ) -> Request:
        if memory not in MEMORY_MODES:
            raise ConfigError(f"memory is {memory!r}, expected one of {', '.join(MEMORY_MODES)}")
        if session is not None:
            check_session_name(session)
        if thread is not None:
            check_session_name(thread, kind="thread")
        if recent_messages is not None:
            _check_count("recent_messages", recent_messages, at_least=0)
        options = dict(options)
        use = ToolUse.parse(
            cast("Sequence[ToolLike] | None", options.pop("tools", None)),
            options.pop("tool_choice", None),
            parallel=options.pop("parallel_tool_calls", None) is not False,
        )
        return Request(
            messages=tuple(as_messages(messages)),
            session=session,
            thread=thread or MAIN_THREAD,
            memory=memory,
            recent_messages=self.recent_messages if recent_messages is None else recent_messages,
            options=GenerationOptions.parse(options),
            use=use,
            order=self._calls.next(),
        )


def _check_count(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigError(f"{name} is {value!r}, expected a whole number, {at_least} or more")
