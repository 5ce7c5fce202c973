"""One turn as a transaction: prefill, decode, commit. Runs on the engine's model thread only."""

import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from torch import Tensor

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.engine.planning import Plan, Planner
from deltamem_agents.engine.prompts import PromptWriter, remainder
from deltamem_agents.engine.records import Request, Transcript, Turn, Usage
from deltamem_agents.errors import ConflictError, GenerationError
from deltamem_agents.generation import Lane, Row, TextStream, feed
from deltamem_agents.messages import Message
from deltamem_agents.state import MemoryState
from deltamem_agents.store import Entry, Snapshot, StateStore

ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """A turn whose prompt has been fed."""

    request: Request
    plan: Plan
    row: Row
    logits: Tensor
    prompt_tokens: int
    cached_tokens: int


Decoded = tuple[Prepared, Lane]
"""A turn whose reply is complete, or cancelled, but not committed."""


@dataclass(frozen=True, slots=True)
class _Warm:
    """The KV cache that a session's last turn left behind."""

    head: str
    start: str | None
    row: Row


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
        fingerprint: of backbone, tokenizer and adapter; states carry it.
        transcript: which messages' texts are kept.
        cache_bytes: budget for the KV caches of sessions between turns.
    """

    def __init__(
        self,
        model: DeltaMemModel,
        writer: PromptWriter,
        planner: Planner,
        store: StateStore,
        *,
        fingerprint: str,
        transcript: Transcript,
        cache_bytes: int,
    ) -> None:
        self.model, self.writer, self.planner, self.store = model, writer, planner, store
        self.fingerprint, self.transcript, self.cache_bytes = fingerprint, transcript, cache_bytes
        self._warm: OrderedDict[str, _Warm] = OrderedDict()

    def prepare(self, request: Request) -> Prepared:
        """Plans a turn and feeds its prompt, from the session's KV cache where that holds its beginning."""
        remembers = request.remembers
        plan = self.planner.session(request) if remembers else self.planner.stateless(request)
        rendered = self.writer.render(plan.shown, plan.spoken, write=remembers)
        opening = self.writer.opening((*plan.shown, *plan.spoken), write=remembers)
        row = self._take_warm(request, plan, rendered.ids) or Row(self._start_state(plan))
        cached = len(row.ids)
        row, logits = feed(self.model, row, [*remainder(rendered.pieces, cached), opening])
        return Prepared(request, plan, row, logits, len(rendered.ids) + len(opening.ids), cached)

    def lane(self, prepared: Prepared, emit: Callable[[str], None], cancelled: Callable[[], bool]) -> Lane:
        """The decoding of a prepared turn."""
        options = prepared.request.options
        write = prepared.request.remembers and self.writer.writes_replies
        stream = TextStream(self.writer.template.tokenizer, options.stop)
        return Lane(prepared.row, prepared.logits, options, stream, write, emit, cancelled)

    def finish(self, prepared: Prepared, lane: Lane, cancelled: Callable[[], bool]) -> Turn:
        """Commits a turn whose reply is complete; a cancelled one leaves the session as it was."""
        request, plan = prepared.request, prepared.plan
        if lane.finish_reason is None or lane.finish_reason == "cancelled":
            raise cancelled_error()
        snapshot = uuid.uuid4().hex if request.session is not None and request.memory == "read_write" else None
        reply = Message(role="assistant", content=lane.stream.text, id=snapshot)
        if request.session is not None and snapshot is not None:
            row = self._after_reply(plan, reply, lane.row)
            if cancelled():
                raise cancelled_error()
            try:
                self._commit(request, plan, row.state, id=snapshot, reply=reply)
                self._keep_warm(request.session, _Warm(snapshot, plan.window.start_id, row))
            except ConflictError:
                self._commit_on_new_head(request, plan, id=snapshot, reply=reply)
        usage = Usage(prepared.prompt_tokens, len(lane.stream.ids), prepared.cached_tokens)
        return Turn(reply, usage, lane.finish_reason, snapshot, request.session)

    def absorb(self, request: Request) -> str:
        """Writes messages into a session without a reply; gives the id of the snapshot."""
        plan, snapshot = self.planner.absorption(request), uuid.uuid4().hex
        try:
            self._commit(request, plan, self._replay(plan).state, id=snapshot)
        except ConflictError:
            self._commit_on_new_head(request, plan, id=snapshot)
        return snapshot

    def drop_warm(self, session: str) -> None:
        """Lets go of a session's KV cache."""
        self._warm.pop(session, None)

    def _start_state(self, plan: Plan) -> MemoryState:
        """The state before the prompt: at the window's start, and after the new messages that are not in the prompt."""
        if plan.window.start is None:
            state = self.model.zero_state()
        else:
            state = MemoryState.from_bytes(plan.window.start.state, fingerprint=self.fingerprint)
            state = state.to(self.model.device)
        done = 0
        for size in plan.groups[:-1]:
            group = plan.new[done : done + size]
            state = feed(self.model, Row(state), self.writer.render(plan.shown, group, write=True).pieces)[0].state
            done += size
        return state

    def _replay(self, plan: Plan, reply: Message | None = None) -> Row:
        """Everything the plan's prompt says, fed from the window's start: what a turn's state is by definition."""
        spoken = plan.spoken if reply is None else (*plan.spoken, reply)
        pieces = self.writer.render(plan.shown, spoken, write=True).pieces
        return feed(self.model, Row(self._start_state(plan)), pieces)[0]

    def _after_reply(self, plan: Plan, reply: Message, row: Row) -> Row:
        """The row with the whole reply in it, as a replay of the conversation would have it."""
        if not self.writer.writes(reply):
            return row  # the state does not depend on the reply's tokens
        rendered = self.writer.render(plan.shown, (*plan.spoken, reply), write=True)
        if rendered.ids[: len(row.ids)] == row.ids and not any(p.spans for p in rendered.pieces):
            rest = remainder(rendered.pieces, len(row.ids))
            return feed(self.model, row, rest)[0] if rest else row
        return self._replay(plan, reply)

    def _commit(
        self, request: Request, plan: Plan, state: MemoryState, *, id: str, reply: Message | None = None
    ) -> None:
        assert request.session is not None
        head = plan.head
        entries = self._entries(plan, plan.new if reply is None else (*plan.new, reply))
        snapshot = Snapshot(
            id=id,
            parent=head.id if head else None,
            session=request.session,
            thread=request.thread,
            turn=head.turn + 1 if head else 1,
            messages=(head.messages if head else 0) + len(entries),
            tokens=(head.tokens if head else 0) + sum(e.tokens for e in entries),
            fingerprint=self.fingerprint,
            created_at=datetime.now(UTC),
            state=state.to_bytes(fingerprint=self.fingerprint),
            entries=entries,
            kind="absorb" if reply is None else "turn",
        )
        drop = self.planner.drop_text_before(plan)
        self.store.commit(request.session, snapshot, expected=head.id if head else None, drop_text_before=drop)

    def _commit_on_new_head(self, request: Request, lost: Plan, *, id: str, reply: Message | None = None) -> None:
        """After losing a race: replays what was said, reply included, on the new head, until it is in."""
        for attempt in range(1, ATTEMPTS + 1):
            plan = self.planner.continuation(request, lost)
            try:
                self._commit(request, plan, self._replay(plan, reply).state, id=id, reply=reply)
                return
            except ConflictError:
                if attempt == ATTEMPTS:
                    raise

    def _entries(self, plan: Plan, messages: tuple[Message, ...]) -> tuple[Entry, ...]:
        lengths = self.writer.render(plan.shown, messages, write=False).lengths[len(plan.shown) :]
        return tuple(
            Entry(
                role=message.role,
                digest=message.digest(),
                message_id=message.id,
                text=None if self.transcript == "none" else message.model_dump_json(),
                tokens=length,
                written=self.writer.writes(message),
            )
            for message, length in zip(messages, lengths, strict=True)
        )

    # A KV cache only caches the one rule: it may be used when it belongs to the same head and the same window start,
    # and holds exactly the tokens that the prompt begins with.

    def _take_warm(self, request: Request, plan: Plan, ids: tuple[int, ...]) -> Row | None:
        warm = self._warm.pop(request.session or "", None) if request.remembers else None
        if warm is None:
            return None
        fits = plan.head is not None and (warm.head, warm.start) == (plan.head.id, plan.window.start_id)
        return warm.row if fits and ids[: len(warm.row.ids)] == warm.row.ids else None

    def _keep_warm(self, session: str, warm: _Warm) -> None:
        self._warm[session] = warm
        while sum(w.row.cache_bytes for w in self._warm.values()) > self.cache_bytes:
            self._warm.popitem(last=False)

