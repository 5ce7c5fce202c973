"""One turn as a transaction: prefill, decode, commit. Runs on the engine's model thread only."""

import logging
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from torch import Tensor

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.engine.alignment import name_of
from deltamem_agents.engine.overlaps import CallOrder
from deltamem_agents.engine.planning import Plan, Planner
from deltamem_agents.engine.prompts import PromptWriter, remainder
from deltamem_agents.engine.records import Request, Transcript, Turn, Usage
from deltamem_agents.engine.warm import Warm, WarmRows
from deltamem_agents.errors import ConflictError, GenerationError, MessageError, SessionError, StoreError
from deltamem_agents.generation import (
    CallGate,
    Lane,
    Piece,
    Prompt,
    Row,
    TextStream,
    TokenLogprob,
    constrain,
    reply_grammar,
    rewound,
    scored,
)
from deltamem_agents.messages import Message
from deltamem_agents.state import MemoryState
from deltamem_agents.store import Entry, Snapshot, StateStore

T = TypeVar("T")
Feeding = Generator[Prompt, None, T]
"""Work that has tokens fed: it yields the prompt until none of it is left."""
ATTEMPTS = 20
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Prepared:
    """A turn whose prompt has been fed."""

    request: Request
    plan: Plan
    row: Row
    logits: Tensor
    opening: Piece
    """The generation prompt at its end."""
    prompt_tokens: int
    cached_tokens: int
    warm: Warm | None = None
    """The KV cache it has gone on from."""
    gate: CallGate | None = None
    """Where tools may be called: holds calls back from the text that is shown."""


Decoded = tuple[Prepared, Lane, Message]
"""A turn whose reply is complete but not committed."""


def _never() -> bool:
    return False


def cancelled_error() -> GenerationError:
    """A call whose caller has gone."""
    return GenerationError("the generation was cancelled: the session is as it was before")


class TurnRunner:
    """Carries turns out on one model and one store.

    Args:
        model: the model.
        writer: renders its prompts.
        planner: plans its turns.
        store: keeps the sessions.
        ends: token ids that end a reply.
        fingerprint: of backbone, tokenizer and adapter; states carry it.
        transcript: which messages' texts are kept.
        cache_bytes: budget for the KV caches of sessions between turns.
        keep_snapshots: how many snapshots of a session's line are kept, and of lines it has left; None: all.
        calls: counts calls and commits.
    """

    def __init__(
        self,
        model: DeltaMemModel,
        writer: PromptWriter,
        planner: Planner,
        store: StateStore,
        *,
        ends: Collection[int],
        fingerprint: str,
        transcript: Transcript,
        cache_bytes: int,
        keep_snapshots: int | None,
        calls: CallOrder,
    ) -> None:
        self.model, self.writer, self.planner, self.store = model, writer, planner, store
        self.ends = ends
        self.fingerprint, self.transcript = fingerprint, transcript
        self.keep_snapshots, self.calls = keep_snapshots, calls
        self.cold_replays = 0  # turns of known sessions without a KV cache to go on from
        self.conflicts = 0  # commits that somebody else was faster than
        self._warm = WarmRows(cache_bytes)

    def prepare(self, request: Request, cancelled: Callable[[], bool] = _never) -> Feeding[Prepared]:
        """Plans a turn and feeds its prompt, from the session's KV cache where that holds its beginning."""
        remembers = request.remembers
        plan = self.planner.session(request) if remembers else self.planner.stateless(request)
        rendered = self.writer.render(plan.shown, plan.spoken, write=remembers, tools=plan.tools, opened=True)
        assert rendered.opening is not None
        ids = rendered.ids
        if not ids:
            raise MessageError("the chat template makes an empty prompt of these messages: check the model's template")
        warm = self._take_warm(request, plan, ids[:-1])  # the last token is fed in any case, for its logits
        self.cold_replays += warm is None and plan.base is not None
        row = warm.row if warm else Row((yield from self._start_state(plan, cancelled)))
        cached = len(row.ids)
        row, logits = yield from self._feed(row, remainder(rendered.pieces, cached), cancelled)
        assert logits is not None
        return Prepared(request, plan, row, logits, rendered.opening, len(ids), cached, warm)

    def lane(self, prepared: Prepared, emit: Callable[[str], None], cancelled: Callable[[], bool]) -> Lane:
        """The decoding of a prepared turn."""
        request, template = prepared.request, self.writer.template
        options = request.options
        if options.no_repeat_ngram_size is None:
            usual = getattr(self.model.backbone.generation_config, "no_repeat_ngram_size", None)
            options = options.model_copy(update={"no_repeat_ngram_size": usual})
        write = request.remembers and self.writer.writes_replies
        stream = TextStream(template.tokenizer, request.options.stop)
        grammar = reply_grammar(request.options.response_format, request.use, template.syntax)
        constraint = None if grammar is None else constrain(template.tokenizer, self.ends, grammar)
        logprobs = list[TokenLogprob]()
        if options.logprobs is not None:
            emit = scored(emit, logprobs)
        if request.use.callable:
            prepared.gate = CallGate(template.syntax.trigger, emit)
            emit = prepared.gate.push
        return Lane(
            prepared.row,
            prepared.logits,
            options,
            stream,
            write,
            emit,
            cancelled,
            constraint=constraint,
            logprobs=logprobs,
        )

    def reply(self, prepared: Prepared, lane: Lane) -> Message:
        """What was decoded: text and tool calls. Shows what text was held back because it might have been a call."""
        use, text = prepared.request.use, lane.stream.text
        if prepared.gate is None:
            return Message(role="assistant", content=text)
        content, calls = self.writer.template.parse_reply(
            text, use.callable, ids=lane.stream.ids, opening=prepared.opening.ids
        )
        prepared.gate.finish(content)
        return Message(role="assistant", content=content, tool_calls=calls)

    def finish(self, prepared: Prepared, lane: Lane, reply: Message, cancelled: Callable[[], bool]) -> Feeding[Turn]:
        """Commits a turn whose reply is complete; a cancelled one leaves the session as it was."""
        assert lane.finish_reason is not None
        request, plan = prepared.request, prepared.plan
        snapshot = request.snapshot if request.session is not None and request.memory == "read_write" else None
        reply = reply.model_copy(update={"id": snapshot, "snapshot": snapshot})
        if request.session is not None and snapshot is not None:
            row = yield from self._after_reply(plan, reply, lane.row, cancelled)
            if cancelled():
                raise cancelled_error()
            try:
                self._commit(request, plan, row.state, id=snapshot, reply=reply)
                self._warm.keep(Warm(request.session, snapshot, plan.window.start_id, row))
            except ConflictError:
                yield from self._commit_on_new_head(request, plan, cancelled, id=snapshot, reply=reply)
        elif prepared.warm is not None:
            self._give_back(prepared.warm, lane.row)
        usage = Usage(prepared.prompt_tokens, len(lane.stream.ids), prepared.cached_tokens)
        logprobs = None if request.options.logprobs is None else tuple(lane.logprobs)
        return Turn(reply, usage, lane.finish_reason, snapshot, request.session, logprobs)

    def absorb(self, request: Request, cancelled: Callable[[], bool] = _never) -> Feeding[str]:
        """Writes messages into a session without a reply; gives the id of the snapshot that holds them."""
        assert request.session is not None
        snapshot = request.snapshot
        plan = self.planner.absorption(request)
        if (done := self._absorbed(request, plan)) is not None:
            return done
        row = yield from self._replay(plan, cancelled, warm_for=request)
        try:
            self._commit(request, plan, row.state, id=snapshot)
            self._warm.keep(Warm(request.session, snapshot, plan.window.start_id, row))
            return snapshot
        except ConflictError:
            return (yield from self._commit_on_new_head(request, plan, cancelled, id=snapshot))

    def drop_warm(self, session: str) -> None:
        """Lets go of a session's KV cache."""
        self._warm.take(session)

    def _feed(
        self, row: Row, pieces: Sequence[Piece], cancelled: Callable[[], bool]
    ) -> Feeding[tuple[Row, Tensor | None]]:
        """The row after pieces, and the logits of the last token, if there is any."""
        prompt = Prompt(row, [piece for piece in pieces if piece.ids], cancelled)
        while prompt.left:
            yield prompt
            if prompt.left and cancelled():
                raise cancelled_error()
        return prompt.row, prompt.logits

    def _start_state(self, plan: Plan, cancelled: Callable[[], bool]) -> Feeding[MemoryState]:
        """The state before the prompt: at the window's start, and after the new messages that are not in the prompt."""
        if plan.window.start is None:
            state = self.model.zero_state()
        else:
            state = MemoryState.from_bytes(plan.window.start.state, fingerprint=self.fingerprint)
            state = state.to(self.model.device)
        done = 0
        for size in plan.groups[:-1]:
            group = plan.new[done : done + size]
            pieces = self.writer.render(plan.shown, group, write=True, tools=plan.tools).pieces
            state = (yield from self._feed(Row(state), pieces, cancelled))[0].state
            done += size
        return state

    def _replay(
        self,
        plan: Plan,
        cancelled: Callable[[], bool],
        reply: Message | None = None,
        *,
        warm_for: Request | None = None,
    ) -> Feeding[Row]:
        """Everything the plan's prompt says, fed from the window's start: what a turn's state is by definition.

        The KV cache of the session of `warm_for` goes on where it holds the beginning.
        """
        spoken = plan.spoken if reply is None else (*plan.spoken, reply)
        rendered = self.writer.render(plan.shown, spoken, write=True, tools=plan.tools)
        warm = self._take_warm(warm_for, plan, rendered.ids) if warm_for else None
        row = warm.row if warm else Row((yield from self._start_state(plan, cancelled)))
        return (yield from self._feed(row, remainder(rendered.pieces, len(row.ids)), cancelled))[0]

    def _after_reply(self, plan: Plan, reply: Message, row: Row, cancelled: Callable[[], bool]) -> Feeding[Row]:
        """The row with the whole reply in it, as a replay of the conversation would have it."""
        if not self.writer.writes(reply):
            return row  # the state does not depend on the reply's tokens
        rendered = self.writer.render(plan.shown, (*plan.spoken, reply), write=True, tools=plan.tools)
        if rendered.ids[: len(row.ids)] == row.ids and not any(p.spans for p in rendered.pieces):
            return (yield from self._feed(row, remainder(rendered.pieces, len(row.ids)), cancelled))[0]
        return (yield from self._replay(plan, cancelled, reply))

    def _commit(
        self, request: Request, plan: Plan, state: MemoryState, *, id: str, reply: Message | None = None
    ) -> None:
        assert request.session is not None
        base, window = plan.base, plan.window
        entries = self._entries(plan, plan.new if reply is None else (*plan.new, reply))
        snapshot = Snapshot(
            id=id,
            parent=base.id if base else None,
            session=request.session,
            thread=request.thread,
            turn=base.turn + 1 if base else 1,
            messages=(base.messages if base else 0) + len(entries),
            thread_messages=window.count + len(entries),
            thread_tokens=window.tokens + sum(e.tokens for e in entries),
            fingerprint=self.fingerprint,
            created_at=datetime.now(UTC),
            state=state.to_bytes(fingerprint=self.fingerprint),
            entries=entries,
            kind="absorb" if reply is None else "turn",
            key=request.key,
            note=plan.course.note,
        )
        self.store.commit(request.session, snapshot, expected=plan.head.id if plan.head else None)
        self.calls.committed(id)
        self._prune(request, snapshot)

    def _prune(self, request: Request, snapshot: Snapshot) -> None:
        """Now and then deletes old snapshots. The turn is kept already, so a failure only leaves them for later."""
        if self.keep_snapshots is None or snapshot.turn % max(1, self.keep_snapshots // 4):
            return
        try:
            self.store.prune(snapshot.session, keep=max(self.keep_snapshots, 2 * request.recent_messages + 1))
        except (StoreError, SessionError) as error:
            _log.warning("old snapshots of session %r could not be pruned: %s", snapshot.session, error)

    def _commit_on_new_head(
        self, request: Request, lost: Plan, cancelled: Callable[[], bool], *, id: str, reply: Message | None = None
    ) -> Feeding[str]:
        """After losing a race: replays what was said, reply included, on the new head, until it is in."""
        for _ in range(ATTEMPTS):
            self.conflicts += 1
            plan = self.planner.continuation(request, lost)
            if (done := self._absorbed(request, plan)) is not None:
                return done
            row = yield from self._replay(plan, cancelled, reply)
            try:
                self._commit(request, plan, row.state, id=id, reply=reply)
                return id
            except ConflictError as error:
                conflict = error
        raise conflict

    def _absorbed(self, request: Request, plan: Plan) -> str | None:
        """The snapshot of the present line that carries the request's key."""
        if request.key is None or plan.head is None:
            return None
        return self.store.absorbed(plan.head.id, request.key)

    def _entries(self, plan: Plan, messages: tuple[Message, ...]) -> tuple[Entry, ...]:
        lengths = self.writer.render(plan.shown, messages, write=False).lengths[len(plan.shown) :]
        return tuple(
            Entry(
                role=message.role,
                digest=message.digest(),
                message_id=name_of(message),
                text=None if self.transcript == "none" else message.model_dump_json(),
                tokens=length,
                written=self.writer.writes(message),
            )
            for message, length in zip(messages, lengths, strict=True)
        )

    # A KV cache only caches the one rule: it may be used when it belongs to the same head and the same window start,
    # and holds exactly the tokens that the prompt begins with.

    def _take_warm(self, request: Request, plan: Plan, ids: tuple[int, ...]) -> Warm | None:
        warm = self._warm.take(request.session or "") if request.remembers else None
        if warm is None or plan.base is None or len(plan.groups) > 1:
            return None
        fits = (warm.head, warm.start) == (plan.base.id, plan.window.start_id)
        return warm if fits and ids[: len(warm.row.ids)] == warm.row.ids else None

    def _give_back(self, warm: Warm, row: Row) -> None:
        """After a turn that only read: the session's cache is what it was before."""
        before = rewound(row, warm.row)
        if before is not None and warm.session not in self._warm:
            self._warm.keep(replace(warm, row=before))
