"""The engine: a frozen model, its memory, and the sessions that live in a store."""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from transformers import PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel, backbone_fingerprint
from deltamem_agents.adapter.default import default_adapter_path
from deltamem_agents.backbone.load import BUNDLED, context_length, end_tokens, load_backbone, tokenizer_fingerprint
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.engine.planning import Planner
from deltamem_agents.engine.prompts import PromptWriter
from deltamem_agents.engine.records import (
    MEMORY_MODES,
    TRANSCRIPTS,
    MemoryMode,
    Request,
    Transcript,
    Turn,
    check_session_name,
)
from deltamem_agents.engine.service import TurnService
from deltamem_agents.engine.turns import TurnRunner
from deltamem_agents.errors import ConfigError, SessionError, SessionNotFoundError
from deltamem_agents.generation import GenerationOptions
from deltamem_agents.messages import MessageLike, as_messages
from deltamem_agents.state import MemoryState
from deltamem_agents.store import SessionInfo, StateStore, open_store


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
        transcript: which messages' texts the store keeps: those in the window, "full" or "none".
        cache_bytes: budget for KV caches of sessions between turns.

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
        cache_bytes: int = 2**30,
    ) -> None:
        if transcript not in TRANSCRIPTS:
            raise ConfigError(f"transcript is {transcript!r}, expected one of {', '.join(TRANSCRIPTS)}")
        if max_prompt_tokens is not None:
            _check_count("max_prompt_tokens", max_prompt_tokens, at_least=1)
        _check_count("recent_messages", recent_messages, at_least=0)
        _check_count("cache_bytes", cache_bytes, at_least=0)
        self.model, self.tokenizer = model, tokenizer
        self.recent_messages = recent_messages
        backbone = model.backbone
        self.context = context_length(backbone)
        self.fingerprint = (
            f"{backbone_fingerprint(backbone)}+{tokenizer_fingerprint(tokenizer)}+{model.adapter.fingerprint()}"
        )
        writer = PromptWriter(ChatTemplate(tokenizer), model.adapter.config)
        self.store = open_store(store)
        planner = Planner(
            self.store,
            writer,
            fingerprint=self.fingerprint,
            context=self.context,
            max_prompt_tokens=max_prompt_tokens,
            recent_messages=recent_messages,
            transcript=transcript,
        )
        runner = TurnRunner(
            model,
            writer,
            planner,
            self.store,
            fingerprint=self.fingerprint,
            transcript=transcript,
            cache_bytes=cache_bytes,
        )
        self._service = TurnService(runner, end_tokens(backbone, tokenizer))

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
    ) -> Self:
        """Loads a model and its adapter; the other arguments are those of the class.

        Args:
            model: "bundled", a folder, or a hub id of a causal LM.
            adapter: an adapter, its folder or hub id; None takes the default one, which exists for the bundled model.
            store: where sessions live.
            device: where to put the model.
            dtype: of the backbone's weights. States are float32 always.
            model_kwargs: anything else transformers' `from_pretrained` takes.
            recent_messages: how many recent messages are also in the prompt.
            max_prompt_tokens: limit on a prompt.
            transcript: which messages' texts the store keeps.

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
        )

    @classmethod
    def bundled(cls, *, store: StateStore | str | Path | None = None, recent_messages: int = 8) -> Self:
        """The bundled model with its default adapter. The first call fetches the model, about 93 MB."""
        return cls.from_pretrained(BUNDLED, store=store, recent_messages=recent_messages)

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
            thread: a label for this line of conversation; by default the session's name.
            memory: "read_write", "read" (nothing is kept) or "off" (the frozen model).
            recent_messages: overrides the engine's, for this call.
            **options: `max_new_tokens`, `temperature`, `top_p`, `top_k`, `repetition_penalty`, `seed`, `stop`.

        Raises:
            MessageError: messages that are empty, malformed, too long, or leave nothing to reply to.
            SessionError: a bad session or thread name.
            ConfigError: another option has an impossible value.
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

    def absorb(self, messages: Sequence[MessageLike], *, session: str, thread: str | None = None) -> str:
        """Writes messages into a session's memory without a reply. They are always taken as new.

        Returns:
            The id of the snapshot.
        """
        check_session_name(session)
        return self._service.absorb(
            self._request(messages, session, thread, "read_write", None, {"max_new_tokens": 1})
        )

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

    def forget(self, session: str) -> None:
        """Deletes a session for good: its memory, its log and its texts.

        Raises:
            SessionNotFoundError: there is no such session.
        """
        self._service.forget(check_session_name(session))

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
        return Request(
            messages=tuple(as_messages(messages)),
            session=session,
            thread=thread or session or "",
            memory=memory,
            recent_messages=self.recent_messages if recent_messages is None else recent_messages,
            options=GenerationOptions.parse(options),
        )


def _check_count(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigError(f"{name} is {value!r}, expected a whole number, {at_least} or more")
