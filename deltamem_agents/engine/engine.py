"""The engine: a frozen model, its memory, and the sessions that live in a store."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import torch
from transformers import PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel, backbone_fingerprint
from deltamem_agents.adapter.default import default_adapter_path
from deltamem_agents.backbone.dtypes import warn_if_quantised
from deltamem_agents.backbone.int8 import Weights
from deltamem_agents.backbone.load import BUNDLED, context_length, end_tokens, load_backbone, tokenizer_fingerprint
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.backbone.tools import ToolLike, ToolUse
from deltamem_agents.engine.forgetting import forget_message
from deltamem_agents.engine.going_back import rolled_back
from deltamem_agents.engine.inspection import MemoryView, inspect_session
from deltamem_agents.engine.interface import QUESTIONS
from deltamem_agents.engine.options import EngineOptions, ReplyOptions, TurnOptions
from deltamem_agents.engine.overlaps import CallOrder
from deltamem_agents.engine.planning import Planner
from deltamem_agents.engine.prompts import PromptWriter
from deltamem_agents.engine.rebuilding import rebuild_session
from deltamem_agents.engine.records import (
    TRANSCRIPTS,
    EngineFigures,
    Recollection,
    Request,
    Transcript,
    Turn,
    check_session_name,
)
from deltamem_agents.engine.remembering import ask_memory
from deltamem_agents.engine.requests import check_count, check_pairs, parse_request
from deltamem_agents.engine.service import TurnService
from deltamem_agents.engine.session import Engine
from deltamem_agents.engine.turns import Feeding, TurnRunner
from deltamem_agents.errors import ConfigError, SessionError, SessionNotFoundError
from deltamem_agents.messages import MessageLike, as_messages
from deltamem_agents.state import MemoryState
from deltamem_agents.store import SessionInfo, Snapshot, StateStore, export_session, import_session, open_store
from deltamem_agents.store.checks import unknown_session

if TYPE_CHECKING:
    from deltamem_agents.engine.remote import RemoteEngine

T = TypeVar("T")


class DeltaMemEngine(Engine):
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
        prefill_chunk: while others decode, this many tokens of prompts are fed between two of their tokens: fewer make
            shorter pauses, and longer waits for the first token of a long prompt.

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
        prefill_chunk: int = 128,
    ) -> None:
        if transcript not in TRANSCRIPTS:
            raise ConfigError(f"transcript is {transcript!r}, expected one of {', '.join(TRANSCRIPTS)}")
        if max_prompt_tokens is not None:
            check_count("max_prompt_tokens", max_prompt_tokens, at_least=1)
        check_count("recent_messages", recent_messages, at_least=0)
        check_count("cache_bytes", cache_bytes, at_least=0)
        check_count("max_batch", max_batch, at_least=1)
        check_count("prefill_chunk", prefill_chunk, at_least=1)
        if keep_snapshots is not None:
            check_count("keep_snapshots", keep_snapshots, at_least=1)
        self.model, self.tokenizer = model, tokenizer
        self.recent_messages = recent_messages
        backbone = model.backbone
        self.model_name = backbone.name_or_path or type(backbone).__name__
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
        self._service = TurnService(runner, max_batch=max_batch, prefill_chunk=prefill_chunk)
        self._closed = False

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        adapter: DeltaMemAdapter | str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
        model_kwargs: dict[str, object] | None = None,
        weights: Weights = "full",
        **options: Unpack[EngineOptions],
    ) -> Self:
        """Loads a model and its adapter.

        Args:
            model: "bundled", a folder, or a hub id of a causal LM.
            adapter: an adapter, its folder or hub id; None takes the one that ships for the model, if one does.
            device: where to put the model; None: on a GPU if there is one.
            dtype: of the backbone's weights. States are float32 always.
            model_kwargs: anything else transformers' `from_pretrained` takes.
            weights: "int8" rounds the backbone's weights on a CPU: a quarter of their bytes, and faster replies.
            **options: those of the class, such as `store` and `recent_messages`.

        Raises:
            BackboneError: the model cannot be found or loaded.
            AdapterError: the adapter cannot be found or loaded, or does not fit.
        """
        ships = adapter is None
        if adapter is None:
            adapter = default_adapter_path(model)
        if not isinstance(adapter, DeltaMemAdapter):
            adapter = DeltaMemAdapter.from_pretrained(adapter)
        loaded = load_backbone(model, device=device, dtype=dtype, model_kwargs=model_kwargs, weights=weights)
        if ships:
            warn_if_quantised(loaded[0])
        return cls(DeltaMemModel(loaded[0], adapter), loaded[1], **options)

    @classmethod
    def bundled(
        cls,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
        model_kwargs: dict[str, object] | None = None,
        weights: Weights = "full",
        **options: Unpack[EngineOptions],
    ) -> Self:
        """The bundled model with its default adapter. The first call fetches the model, about 93 MB."""
        return cls.from_pretrained(BUNDLED, device=device, dtype=dtype, model_kwargs=model_kwargs, weights=weights,
                                   **options)

    @staticmethod
    def connect(url: str, *, api_key: str | None = None, timeout: float = 600.0) -> "RemoteEngine":
        """An engine behind a server that `deltamem serve` runs: the same methods, and the same errors.

        Args:
            url: where the server is, such as "http://127.0.0.1:8080".
            api_key: what it asks for, if it does.
            timeout: how many seconds an answer may take.

        Raises:
            StoreError: it cannot be reached.
            ConfigError: no URL, or a key that it doesn't know.
        """
        from deltamem_agents.engine.remote import RemoteEngine

        return RemoteEngine(url, api_key=api_key, timeout=timeout)

    # --- turns

    def generate(self, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> Turn:
        """Replies to messages; see `EngineCalls.generate`."""
        return self._service.run(self._request(messages, options))

    async def agenerate(self, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> Turn:
        """`generate` for an event loop. Cancelling the task leaves the session as it was."""
        return await self._service.arun(self._request(messages, options))

    def stream(self, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> Iterator[str | Turn]:
        """Yields the reply's text as it comes, then the `Turn`; see `EngineCalls.stream`."""
        return self._service.stream(self._request(messages, options))

    def astream(
        self, messages: Sequence[MessageLike], *, snapshot: str | None = None, **options: Unpack[TurnOptions]
    ) -> AsyncIterator[str | Turn]:
        """`stream` for an event loop; see `EngineCalls.astream`.

        `snapshot` is the id that the turn's snapshot is to have, a new one: for who must name it before it is there.
        """
        request = self._request(messages, options)
        return self._service.astream(request if snapshot is None else replace(request, snapshot=snapshot))

    def batch(
        self,
        conversations: Sequence[Sequence[MessageLike]],
        *,
        sessions: Sequence[str | None],
        thread: str | None = None,
        **options: Unpack[ReplyOptions],
    ) -> list[Turn]:
        """Replies to many sessions, decoded together; see `EngineCalls.batch`."""
        check_pairs(conversations, sessions)
        pairs = zip(conversations, sessions, strict=True)
        return self._service.batch(
            [self._request(messages, {**options, "session": name, "thread": thread}) for messages, name in pairs]
        )

    def absorb(
        self, messages: Sequence[MessageLike], *, session: str, thread: str | None = None, key: str | None = None
    ) -> str:
        """Writes messages without a reply; see `EngineCalls.absorb`."""
        return self._service.absorb(self._absorption(messages, session, thread, key))

    async def aabsorb(
        self, messages: Sequence[MessageLike], *, session: str, thread: str | None = None, key: str | None = None
    ) -> str:
        """`absorb` for an event loop."""
        return await self._service.aabsorb(self._absorption(messages, session, thread, key))

    def count_tokens(self, messages: Sequence[MessageLike], *, tools: Sequence[ToolLike] | None = None) -> int:
        """The tokens of a prompt; see `EngineCalls.count_tokens`."""
        shown, use = as_messages(messages), ToolUse.parse(tools)
        return len(self._writer.render(shown, (), write=False, tools=use.shown, opened=True).ids)

    def token_ids(self, text: str) -> list[int]:
        """A text's tokens, without markers around it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    # --- sessions

    def sessions(self, *, prefix: str = "") -> list[SessionInfo]:
        """The sessions in the store whose names start with `prefix`."""
        return self.store.sessions(prefix=prefix)

    def info(self, session: str) -> SessionInfo:
        """Head, times and sizes; see `EngineCalls.info`."""
        if (info := self.store.session(check_session_name(session))) is None:
            raise unknown_session(session)
        return info

    def log(self, session: str) -> list[Snapshot]:
        """All commits of a session; see `EngineCalls.log`."""
        return self.store.log(session)

    def state(self, session: str) -> MemoryState:
        """A session's memory as it is now; see `EngineCalls.state`."""
        head = self.info(session).head
        if head is None:
            raise SessionNotFoundError(f"session {session!r} is empty: it has no memory yet")
        return MemoryState.from_bytes(self.store.snapshot(head).state, fingerprint=self.fingerprint)

    def fork(self, session: str, new_name: str, *, at: str | None = None) -> None:
        """Begins another session at a commit of this one's line; see `EngineCalls.fork`."""
        check_session_name(new_name)
        self.on_session(session, lambda: self.store.fork(session, new_name, at=at))

    def rollback(self, session: str, to: str | None = None, *, turns: int | None = None) -> str | None:
        """Goes to one of a session's commits; see `EngineCalls.rollback`."""
        return self.on_session(session, lambda: rolled_back(self.store, session, to, turns=turns))

    def forget(self, session: str) -> None:
        """Deletes a session for good; see `EngineCalls.forget`."""
        self._service.forget(check_session_name(session))

    def forget_message(self, session: str, message: str, *, purge: bool = False) -> str | None:
        """Rebuilds a session without one message; see `EngineCalls.forget_message`."""

        def work(cancelled: Callable[[], bool]) -> Feeding[str | None]:
            try:
                return (
                    yield from forget_message(
                        self.store,
                        session,
                        message,
                        purge=purge,
                        recent_messages=self.recent_messages,
                        runner_on=self._runner_on,
                        cancelled=cancelled,
                    )
                )
            finally:
                self._service.drop_warm(session)

        return self._service.carry(work, sessions=[check_session_name(session)])

    def remembered(self, session: str, questions: Sequence[str] = QUESTIONS) -> list[Recollection]:
        """What a session answers out of its memory alone; see `EngineCalls.remembered`."""
        return ask_memory(self, session, questions)

    def export_session(self, session: str, path: str | Path, *, named: str | None = None) -> int:
        """Writes a session's line to one file, under another name if one is given; see `EngineCalls.export_session`."""
        return self.on_session(session, lambda: export_session(self.store, session, path, named=named))

    def take_in(self, path: str | Path, *, name: str | None = None) -> str:
        """Takes in what `export_session` wrote; see `EngineCalls.take_in`."""
        return import_session(self.store, path, name=None if name is None else check_session_name(name))

    def rebuild(self, session: str) -> int:
        """Makes a session's memory anew from its texts; see `EngineCalls.rebuild`."""

        def work(cancelled: Callable[[], bool]) -> Feeding[int]:
            recent, runner_on = self.recent_messages, self._runner_on
            return rebuild_session(
                self.store, session, recent_messages=recent, runner_on=runner_on, cancelled=cancelled
            )

        return self._service.carry(work, sessions=[check_session_name(session)])

    def inspect(self, session: str, *, writes: bool = True) -> MemoryView:
        """Makes a memory readable; see `EngineCalls.inspect`."""

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

    @property
    def figures(self) -> EngineFigures:
        """What the engine is doing, and has counted."""
        return self._service.figures

    def on_session(self, session: str, work: Callable[[], T]) -> T:
        """Does something to a session between two of its turns, on the model's thread."""
        return self._service.call(work, sessions=[check_session_name(session)])

    def close(self) -> None:
        """Finishes queued work and closes the store. The engine cannot be used afterwards."""
        self._closed = True
        self._service.close()
        self.store.close()

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

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
        request = self._request(messages, {"session": session, "thread": thread, "max_new_tokens": 1})
        return replace(request, key=key)

    def _request(self, messages: Sequence[MessageLike], options: TurnOptions) -> Request:
        return parse_request(messages, options, recent_messages=self.recent_messages, order=self._calls.next())
