"""Where a turn goes: what it continues, what it adds, and whether anything may be undone for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deltamem_agents.engine.alignment import Known, by_digest, moved_on, name_of, place_of
from deltamem_agents.engine.records import Request
from deltamem_agents.errors import SessionError
from deltamem_agents.messages import Message
from deltamem_agents.store import Entry, Snapshot, StateStore

LOOKBACK = 64
"""At least this many messages of a thread are compared with a caller's."""
NEAR = 32
"""Ids of this many of the last messages are looked up first; mostly that is enough."""


@dataclass(frozen=True, slots=True)
class Course:
    """What a turn starts from and adds."""

    base: Snapshot | None
    """The turn's parent; None for the start of a line. Another one than the session's head: the turn goes back."""
    shown: tuple[Message, ...]
    """System prompts, and context that the session doesn't know: in front of the window, never written."""
    new: tuple[Message, ...]
    """What the turn adds to its base, before the reply."""
    until: int | None = None
    """Where the part of the thread ends that is shown, in its messages; None: where the thread ends."""
    note: str | None = None
    """What the log should say about it."""


class Navigator:
    """Finds the course of turns in one store.

    Args:
        store: where the sessions are.
        overlaps: whether a turn was committed while a call was already under way.
    """

    def __init__(self, store: StateStore, overlaps: Callable[[Snapshot, Request], bool]) -> None:
        self._store, self._overlaps = store, overlaps

    def course(self, request: Request, head: Snapshot | None) -> Course:
        """What is new in a caller's messages, and where it belongs.

        Messages with ids or handles that the session knows mark the point after which all is new, and may lead back to
        any turn of its lines: another reply, an edited message. Otherwise digests mark it, and nothing is undone but
        the last reply when its question is asked again. In doubt it is new: memory may hold a thing twice, it never
        loses one. Calls that overlap are chained; what another thread has said since is never undone.

        Raises:
            SessionError: a handle that is on none of the session's lines.
        """
        system = tuple(m for m in request.messages if m.role == "system")
        spoken = [m for m in request.messages if m.role != "system"]
        turns = self._thread(request, head)
        named = self._last_named(request, spoken)
        known = moved_on(named, spoken, turns) if named else by_digest(spoken, turns)
        if known is None:
            return Course(head, system, tuple(spoken))
        course = self._onward(request, head, spoken, named, known)
        if (course.base and course.base.id) != (head and head.id):
            turns = self._thread(request, course.base)
        return replace(course, shown=(*system, *_context(spoken, turns, request, known, course)))

    def _onward(
        self, request: Request, head: Snapshot | None, spoken: Sequence[Message], named: Known | None, known: Known
    ) -> Course:
        """The course after a known message, without what is shown."""
        tail = tuple(spoken[known.index + 1 :])
        later, here = self._later(head, known)
        if here and known.ends_turn and all(turn.thread != request.thread for turn in later):
            return Course(head, (), tail)
        if not tail and known.entry.role == "assistant":  # the assistant is to go on: that undoes nothing
            return Course(head, (), (), until=_until(known, request) if here else None)
        asks_again = not tail
        if named is None and not asks_again:
            return Course(head, (), tail)  # digests alone undo nothing but a reply
        if any(self._overlaps(turn, request) for turn in later):
            return self._appended(request, head, spoken, known if named else None)
        kept = tuple(_message(entry) for entry in known.turn.entries[: known.place + 1])
        own = next((n for n, turn in enumerate(later) if turn.thread == request.thread), len(later))
        if here and known.ends_turn and all(turn.thread == request.thread for turn in later[own:]):
            return Course(self._parent(request, later[own]), (), tail)  # what others said before it stays
        others = sorted({turn.thread for turn in later} - {request.thread})
        if not others and known.ends_turn:
            return Course(self._store.snapshot(known.turn.id), (), tail)
        if not others and None not in kept:
            return Course(self._parent(request, known.turn), (), (*(m for m in kept if m), *tail))
        reason = f"thread {', '.join(map(repr, others))} wrote since" if others else "its text is not kept"
        note = f"follows message {known.turn.start + known.place + 1} of the line; nothing was undone: {reason}"
        if here:
            return Course(head, (), tail, until=_until(known, request), note=note)
        return replace(self._appended(request, head, spoken, known), note=note)

    def _appended(
        self, request: Request, head: Snapshot | None, spoken: Sequence[Message], named: Known | None
    ) -> Course:
        """Everything after the last message whose name is on the present line, without undoing anything."""
        if named is None:  # the question of the last reply, asked by two calls at once
            return Course(head, (), tuple(spoken[-1:]))
        line = self._store.line(head.id) if head else []
        point = self._last_named(request, spoken, on={turn.id for turn in line})
        if point is None:
            return Course(head, (), tuple(spoken))
        new = tuple(spoken[point.index + 1 :])
        return Course(head, (), new, until=None if new else _until(point, request))

    def _thread(self, request: Request, base: Snapshot | None) -> list[Snapshot]:
        """The end of the thread on a line, at least as far back as the caller's messages can reach."""
        reach = max(len(request.messages), 2 * request.recent_messages, LOOKBACK)
        return [] if base is None else self._store.thread(base.id, request.thread, last=reach)

    def _last_named(self, request: Request, spoken: Sequence[Message], *, on: set[str] | None = None) -> Known | None:
        """The last message that one of the session's turns holds under the same name, unaltered.

        Where all that it holds were altered, the place before the first of them: that one was edited.
        """
        edited = None
        for start, stop in ((max(0, len(spoken) - NEAR), len(spoken)), (0, max(0, len(spoken) - NEAR))):
            names = {name for m in spoken[start:stop] if (name := name_of(m))}
            found = self._store.find(request.session or "", names) if names else {}
            for index in reversed(range(start, stop)):
                message = spoken[index]
                turn = found.get(name_of(message) or "")
                if turn is None and message.snapshot is not None and on is None:
                    raise _foreign(index, message.snapshot, request)
                if turn is None or (on is not None and turn.id not in on):
                    continue
                place, same = place_of(message, turn)
                if same:
                    return Known(index, turn, place)
                edited = Known(index - 1, turn, place - 1)
        return edited

    def _later(self, head: Snapshot | None, known: Known) -> tuple[list[Snapshot], bool]:
        """The turns of the present line that a turn after `known` would leave, and whether `known` is on that line."""
        if head is None:
            return [], False
        kept = {known.turn.id} if known.ends_turn else set[str]()
        line = self._store.line(head.id, since=known.turn.start)
        if any(turn.id == known.turn.id for turn in line):
            return [t for t in line if t.id not in kept and t.start >= known.turn.start], True
        before = {turn.id for turn in self._store.line(known.turn.id)}
        before -= set() if known.ends_turn else {known.turn.id}
        return [turn for turn in self._store.line(head.id) if turn.id not in before], False

    def _parent(self, request: Request, turn: Snapshot) -> Snapshot | None:
        if turn.parent is not None:
            return self._store.snapshot(turn.parent)
        if turn.start > 0:
            raise SessionError(
                f"session {request.session!r} cannot go back before turn {turn.turn}: what came before was pruned; "
                "go back less far, or keep more snapshots next time (keep_snapshots)"
            )
        return None


def _context(
    spoken: Sequence[Message], turns: Sequence[Snapshot], request: Request, known: Known, course: Course
) -> tuple[Message, ...]:
    """What stands before the new messages and is none of the thread's own: a summary, injected documents.

    A thread that begins as a copy of another one shows the end of what it copied. A full history of which the beginning
    was pruned is not context: it is in the state.
    """
    before = spoken[: max(0, min(known.index + 1, len(spoken) - len(course.new)))]
    entries = [entry for turn in (*turns, known.turn) for entry in turn.entries]
    own = {entry.digest for entry in entries} | {entry.message_id for entry in entries}
    if known.turn.thread != request.thread and not turns:
        copied = before[len(before) - min(request.recent_messages, len(before)) :]
        answered = next((n for n, message in enumerate(copied) if message.role != "tool"), len(copied))
        return tuple(copied[answered:])
    mine = [m.digest() in own or (name_of(m) is not None and name_of(m) in own) for m in before]
    if turns and turns[0].thread_start > 0 and True in mine:
        first = mine.index(True)
        if before[first].digest() == entries[0].digest:
            before, mine = before[first:], mine[first:]
    return tuple(m for m, known_here in zip(before, mine, strict=True) if not known_here)


def _until(known: Known, request: Request) -> int | None:
    """The end of the part of the thread that a caller sees, if it is of this thread."""
    return known.turn.thread_start + known.place + 1 if known.turn.thread == request.thread else None


def _message(entry: Entry) -> Message | None:
    return None if entry.text is None else Message.model_validate_json(entry.text)


def _foreign(index: int, snapshot: str, request: Request) -> SessionError:
    return SessionError(
        f"message {index} carries the handle of snapshot {snapshot!r}, which is on none of the lines of session "
        f"{request.session!r}: it is another session's, was forgotten or pruned, or lives in another store; open the "
        "store and session it was made in, fork that session, or pass the message without its handle"
    )
