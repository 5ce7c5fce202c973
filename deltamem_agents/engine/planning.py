"""Planning a turn: what is new, where the window starts, and whether it all fits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deltamem_agents.backbone.tools import Tool
from deltamem_agents.engine.courses import LOOKBACK, Course, Navigator
from deltamem_agents.engine.prompts import PromptWriter, in_groups
from deltamem_agents.engine.records import Request, Transcript
from deltamem_agents.engine.windows import Window, load_window
from deltamem_agents.errors import (
    ConfigError,
    ContextOverflowError,
    FingerprintError,
    SessionNotFoundError,
    StoreError,
)
from deltamem_agents.messages import Message
from deltamem_agents.store import SessionInfo, Snapshot, StateStore

REPLY_MARKERS = 8
"""Tokens of the context left for what a template puts behind a reply."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a turn starts from and what it adds."""

    head: Snapshot | None
    """The session's head when the turn was planned; None for a new session or a call without one."""
    course: Course
    window: Window
    lengths: tuple[int, ...]
    """Tokens of each new message."""
    tools: tuple[Tool, ...]
    """The tools that the prompt describes."""
    groups: tuple[int, ...]
    """Sizes of consecutive groups of new messages that each fit the context. Usually one; the last is in the prompt."""

    @property
    def base(self) -> Snapshot | None:
        """The turn's parent."""
        return self.course.base

    @property
    def goes_back(self) -> bool:
        """Whether the turn leaves the line that the head is on."""
        return (self.base and self.base.id) != (self.head and self.head.id)

    @property
    def new(self) -> tuple[Message, ...]:
        """The messages that the turn adds, before its reply."""
        return self.course.new

    @property
    def shown(self) -> tuple[Message, ...]:
        """What the prompt begins with, never written."""
        return (*self.course.shown, *self.window.shown)

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
        transcript: which messages' texts are kept; without texts there are no windows.
        overlaps: whether a turn was committed while a call was already under way.
    """

    def __init__(
        self,
        store: StateStore,
        writer: PromptWriter,
        *,
        fingerprint: str,
        context: int,
        max_prompt_tokens: int | None,
        transcript: Transcript,
        overlaps: Callable[[Snapshot, Request], bool],
    ) -> None:
        self._navigator = Navigator(store, overlaps)
        self.store, self.writer, self.fingerprint = store, writer, fingerprint
        self.context, self.max_prompt_tokens = context, max_prompt_tokens
        self.transcript = transcript

    def session(self, request: Request) -> Plan:
        """Plans a turn of a session.

        Raises:
            ContextOverflowError: the question, or what is shown in front, is longer than the context.
            FingerprintError: the session belongs to another model.
        """
        head = self.head(request.session)
        course = self._navigator.course(request, head)
        plan = self._plan(request, head, course)
        if plan.spoken or any(message.role != "system" for message in plan.shown):
            return plan
        said = [message for message in request.messages if message.role != "system"]  # nothing new, and no window
        return self._plan(request, head, replace(course, shown=(*course.shown, *said[-1:]))) if said else plan

    def absorption(self, request: Request) -> Plan:
        """Plans the writing of messages that are new by definition."""
        head = self.head(request.session)
        return self._plan(request, head, Course(head, (), request.messages), absorbs=True)

    def continuation(self, request: Request, lost: Plan) -> Plan:
        """Plans a turn again, on a head that somebody else has moved meanwhile: nothing of theirs is undone.

        Raises:
            SessionNotFoundError: they have forgotten the session.
        """
        head = self.head(request.session)
        if lost.head is not None and self.store.session(request.session or "") is None:
            raise SessionNotFoundError(
                f"session {request.session!r} was forgotten while this turn was under way: nothing of the turn was "
                "kept; say it again to begin the session anew"
            )
        new = lost.new
        if head is not None and lost.goes_back:  # what it shares with the line is there already
            turns = self.store.thread(head.id, request.thread, last=LOOKBACK)
            held = {entry.digest for turn in turns for entry in turn.entries}
            new = tuple(message for message in new if message.digest() not in held)
        return self._plan(request, head, replace(lost.course, base=head, new=new, until=None))

    def stateless(self, request: Request) -> Plan:
        """Plans a call without memory: the frozen model, on just these messages.

        Raises:
            ContextOverflowError: they are longer than the context.
        """
        tools = request.use.shown
        tokens = len(self.writer.render(request.messages, (), write=False, tools=tools, opened=True).ids)
        if tokens > self._limit(request):
            raise ContextOverflowError(
                f"the prompt has {tokens} tokens, but {self._limit(request)} fit ({self._budget(request)}): shorten "
                "it, or name a session, whose memory takes in what does not fit"
            )
        return Plan(None, Course(None, request.messages, ()), Window(None, (), ()), (), tools, (0,))

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
                f"have {self.fingerprint!r}: load the matching adapter, rebuild the session from its text "
                "(`engine.rebuild`), or use another session"
            )
        return line[-1]

    def _plan(
        self, request: Request, head: Snapshot | None, course: Course, *, absorbs: bool = False
    ) -> Plan:
        tools, limit = request.use.shown, self._limit(request)
        fixed, context, lengths = self._measured(course, tools)
        if max((*context, *lengths), default=0) > limit - fixed:
            asked = request.messages if absorbs else request.messages[-1:]
            course = self._cut(course, limit - fixed, (*context, *lengths), asked)
            fixed, context, lengths = self._measured(course, tools)
        new, fixed = course.new, fixed + sum(context)
        room = limit - fixed
        self._check_fits(request, new, lengths, room, fixed)
        groups = in_groups(lengths, room)
        crowded = len(groups) > 1  # the memory takes in what does not fit, so the window is all behind
        asks_again = not new and course.until is not None  # then the question itself must be in the window
        window = load_window(
            self.store,
            course.base,
            request.thread,
            recent=0 if crowded or self.transcript == "none" else max(request.recent_messages, asks_again),
            room=room,
            new=sum(lengths),
            answers=not crowded and bool(new) and new[0].role == "tool",
            until=course.until,
        )
        return Plan(head, course, window, lengths, tools, tuple(groups))

    def _measured(self, course: Course, tools: Sequence[Tool]) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """Tokens of a prompt in front of the window: what is always there, each message shown there, each new one.

        A system prompt is always there. The numbers of what is shown are 0 for it.
        """
        shown, new = course.shown, course.new
        measured = new or (Message(role="user", content=""),)  # in front of the window there may be nothing new
        rendered = self.writer.render(shown, measured, write=False, tools=tools, opened=True)
        lengths = rendered.lengths[len(shown) :]
        context = tuple(0 if m.role == "system" else n for m, n in zip(shown, rendered.lengths, strict=False))
        fixed = len(rendered.ids) - sum(lengths) - sum(context) + self.writer.template.filler
        return fixed, context, lengths if new else ()

    def _cut(
        self, course: Course, room: int, lengths: Sequence[int], asked: Sequence[Message]
    ) -> Course:
        """The course with messages that are longer than the room cut to half of it together, in what the model sees.

        A tool's answer must not end a conversation for good: what is kept is the whole of it. The question, and what
        an absorption writes, are the caller's to shorten.
        """
        messages = (*course.shown, *course.new)
        over = [
            place
            for place, (message, length) in enumerate(zip(messages, lengths, strict=True))
            if length > room and not (message.role == "user" and any(message is one for one in asked))
        ]
        cut = list(messages)
        for place in over:
            cut[place] = self._shortened(messages[place], lengths[place], max(1, room // 2 // len(over)))
        return replace(course, shown=tuple(cut[: len(course.shown)]), new=tuple(cut[len(course.shown) :]))

    def _shortened(self, message: Message, length: int, most: int) -> Message:
        """A message that takes at most so many tokens in a prompt, if cutting its texts can bring it there."""
        longest = max(len(message.content), *(len(str(call.arguments)) for call in message.tool_calls), 0)
        characters = min(longest, message.cut or longest)
        while length > most and characters:
            characters = int(characters * min(0.9, most / length))
            message = message.model_copy(update={"cut": characters})
            length = sum(self.writer.render((), [message], write=False).lengths)
        return message

    def _limit(self, request: Request) -> int:
        room = self.context - request.options.max_new_tokens - REPLY_MARKERS
        if room < 1:
            raise ConfigError(
                f"max_new_tokens is {request.options.max_new_tokens}, and the model's context is {self.context} "
                f"tokens: expected at most {self.context - REPLY_MARKERS - 1}, less what the prompt takes; ask for a "
                "shorter reply"
            )
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
