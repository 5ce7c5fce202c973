"""Planning a turn: what is new, where the window starts, and whether it all fits."""

from collections.abc import Sequence
from dataclasses import dataclass

from deltamem_agents.engine.alignment import align
from deltamem_agents.engine.prompts import PromptWriter, in_groups
from deltamem_agents.engine.records import Request, Transcript
from deltamem_agents.engine.windows import Window, block_start, load_window
from deltamem_agents.errors import ContextOverflowError, FingerprintError, MessageError, StoreError
from deltamem_agents.messages import Message
from deltamem_agents.store import SessionInfo, Snapshot, StateStore

LOOKBACK = 64
"""At least this many messages of the ledger are compared with a caller's."""
REPLY_MARKERS = 8
"""Tokens of the context left for what a template puts behind a reply."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a turn starts from and what it adds."""

    head: Snapshot | None
    """The session's head when the turn began; None for a new session or a call without one."""
    window: Window
    shown: tuple[Message, ...]
    """System prompts and context, in front of the window, never written."""
    new: tuple[Message, ...]
    lengths: tuple[int, ...]
    """Tokens of each new message."""
    groups: tuple[int, ...]
    """Sizes of consecutive groups of new messages that each fit the context. Usually one; the last is in the prompt."""

    @property
    def spoken(self) -> tuple[Message, ...]:
        """What the prompt holds after `shown`: the window, and the last group of new messages."""
        return (*self.window.messages, *self.new[len(self.new) - self.groups[-1] :])


class Planner:
    """Plans turns for one model and one store.

    Args:
        store: where sessions are.
        writer: renders prompts.
        fingerprint: of the model that the sessions must belong to.
        context: how many tokens the backbone can attend to.
        max_prompt_tokens: limit on a prompt; None: what the context holds, less the reply.
        recent_messages: how many recent messages have their texts kept, at least, whatever a call's own window is.
        transcript: which messages' texts are kept; without texts there are no windows.
    """

    def __init__(
        self,
        store: StateStore,
        writer: PromptWriter,
        *,
        fingerprint: str,
        context: int,
        max_prompt_tokens: int | None,
        recent_messages: int,
        transcript: Transcript,
    ) -> None:
        self.store, self.writer, self.fingerprint = store, writer, fingerprint
        self.context, self.max_prompt_tokens = context, max_prompt_tokens
        self.recent_messages, self.transcript = recent_messages, transcript

    def session(self, request: Request) -> Plan:
        """Plans a turn of a session.

        Raises:
            ContextOverflowError: one message, or what is shown in front, is longer than the context.
            FingerprintError: the session belongs to another model.
            MessageError: there is nothing to reply to.
        """
        head = self.head(request.session)
        reach = max(len(request.messages), 2 * request.recent_messages, LOOKBACK)
        ledger = () if head is None else self.store.line(head.id, since=max(0, head.messages - reach))
        aligned = align(request.messages, [entry for turn in ledger for entry in turn.entries])
        plan = self._plan(request, head, aligned.shown, aligned.new)
        if not plan.spoken or plan.spoken[-1].role == "assistant":
            raise MessageError(
                "there is nothing new to reply to: the session has seen all of these messages, or the last one is the "
                "assistant's; add a user message"
            )
        return plan

    def absorption(self, request: Request) -> Plan:
        """Plans the writing of messages that are new by definition."""
        return self._plan(request, self.head(request.session), (), request.messages)

    def continuation(self, request: Request, lost: Plan) -> Plan:
        """Plans a turn again, on a head that somebody else has moved meanwhile."""
        return self._plan(request, self.head(request.session), lost.shown, lost.new)

    def stateless(self, request: Request) -> Plan:
        """Plans a call without memory: the frozen model, on just these messages.

        Raises:
            ContextOverflowError: they are longer than the context.
            MessageError: there is nothing to reply to.
        """
        if request.messages[-1].role in ("assistant", "system"):
            last = request.messages[-1].role
            raise MessageError(f"there is nothing to reply to: the last message is the {last}'s; add a user message")
        tokens = len(self.writer.render(request.messages, (), write=False).ids)
        tokens += len(self.writer.opening(request.messages).ids)
        if tokens > self._limit(request):
            raise ContextOverflowError(
                f"the prompt has {tokens} tokens, but {self._limit(request)} fit ({self._budget(request)}): shorten "
                "it, or name a session, whose memory takes in what does not fit"
            )
        return Plan(None, Window(None, ()), request.messages, (), (), (0,))

    def head(self, session: str | None) -> Snapshot | None:
        """The head of a session, None if it has none.

        Raises:
            FingerprintError: it belongs to another model.
        """
        info: SessionInfo | None = None if session is None else self.store.session(session)
        if info is None or info.head is None:
            return None
        line = self.store.line(info.head, since=info.messages - 1)
        if not line:
            raise StoreError(f"session {session!r} has head {info.head!r}, but the store has no such snapshot")
        if info.fingerprint != self.fingerprint:
            raise FingerprintError(
                f"session {session!r} was written under fingerprint {info.fingerprint!r}, this backbone and adapter "
                f"have {self.fingerprint!r}: load the matching adapter, or use another session"
            )
        return line[-1]

    def drop_text_before(self, plan: Plan) -> int:
        """Before which message of the line texts may be dropped when the turn is committed.

        One call with a smaller window must not cost the next call its own, so the engine's window counts too.
        """
        if self.transcript != "window" or plan.head is None:
            return 0
        return min(plan.window.position, block_start(plan.head.messages, self.recent_messages))

    def _plan(
        self, request: Request, head: Snapshot | None, shown: tuple[Message, ...], new: tuple[Message, ...]
    ) -> Plan:
        measured = new or (Message(role="user", content=""),)  # in front of the window there may be nothing new
        rendered = self.writer.render(shown, measured, write=False)
        lengths = rendered.lengths[len(shown) :]
        fixed = len(rendered.ids) - sum(lengths) + len(self.writer.opening((*shown, *measured)).ids)
        lengths = lengths if new else ()
        room = self._limit(request) - fixed
        self._check_fits(request, new, lengths, room, fixed)
        groups = in_groups(lengths, room)
        if len(groups) > 1:  # the memory takes in what does not fit, so the window is all behind
            start = None if head is None else self.store.snapshot(head.id)
            return Plan(head, Window(start, ()), shown, new, lengths, tuple(groups))
        window = load_window(
            self.store,
            head,
            recent=0 if self.transcript == "none" else request.recent_messages,
            room=room,
            new=sum(lengths),
            answers=bool(new) and new[0].role == "tool",
        )
        return Plan(head, window, shown, new, lengths, tuple(groups))

    def _limit(self, request: Request) -> int:
        room = self.context - request.options.max_new_tokens - REPLY_MARKERS
        return min(self.max_prompt_tokens or room, room)

    def _budget(self, request: Request) -> str:
        reply = request.options.max_new_tokens
        return f"context {self.context}, reply {reply}, max_prompt_tokens {self.max_prompt_tokens}"

    def _check_fits(
        self, request: Request, messages: Sequence[Message], lengths: Sequence[int], room: int, fixed: int
    ) -> None:
        if room <= 0:
            raise ContextOverflowError(
                f"system prompt and shown context take {fixed} tokens and leave no room for messages "
                f"({self._budget(request)}): shorten them"
            )
        for position, (message, length) in enumerate(zip(messages, lengths, strict=True)):
            if length > room:
                raise ContextOverflowError(
                    f"new message {position} ({message.role}) has {length} tokens, but {room} fit beside {fixed} "
                    f"tokens of system prompt and shown context ({self._budget(request)}): shorten or split it"
                )
