"""Taking one message out of a memory: the line before it stays, everything since is absorbed again without it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from deltamem_agents.engine.rebuilding import replay
from deltamem_agents.engine.turns import Feeding, TurnRunner
from deltamem_agents.errors import SessionError
from deltamem_agents.messages import Message
from deltamem_agents.store import Entry, MemoryStore, Snapshot, StateStore
from deltamem_agents.store.checks import unknown_session


def forget_message(
    store: StateStore,
    name: str,
    message: str,
    *,
    purge: bool,
    recent_messages: int,
    runner_on: Callable[[StateStore], TurnRunner],
    cancelled: Callable[[], bool],
) -> Feeding[str | None]:
    """Moves a session to a line that never held a message; see `EngineCalls.forget_message`.

    Args:
        store: where the session is.
        name: the session.
        message: the message's id, or "SNAPSHOT/PLACE".
        purge: whether the snapshots that knew it are deleted.
        recent_messages: the window, which decides where replays start, as in live turns.
        runner_on: makes a runner that works on a given store.
        cancelled: asked between parts; then nothing was done.

    Raises:
        SessionNotFoundError: there is no such session.
        SessionError: the message is not on the line, texts since then are missing, or others still need the old line.
        FingerprintError: the session belongs to another model.
        ConflictError: the session went on meanwhile.
    """
    info = store.session(name)
    if info is None:
        raise unknown_session(name)
    line = [] if info.head is None else store.line(info.head)
    number, place = _found(name, line, message)
    before, knew = line[:number], line[number]
    if number == 0 and knew.start > 0:
        raise SessionError(
            f"message {message!r} of session {name!r} cannot be forgotten: the state before it was pruned; keep more "
            "snapshots next time (keep_snapshots), or forget the session"
        )
    missing = sum(entry.text is None for turn in line[number:] for entry in turn.entries)
    if missing:
        raise SessionError(
            f"message {message!r} of session {name!r} cannot be forgotten: the texts of {missing} messages since then "
            "are not kept, so they cannot be absorbed again; forget the session, or keep texts next time (transcript)"
        )
    runner_on(store).planner.head(name)  # refuses another model's session
    others = [other for other in store.through(knew.id) if other != name] if purge else []
    if others:
        raise SessionError(
            f"session {others[0]!r} was forked from session {name!r} after message {message!r}, and knows it: forget "
            "the message there as well, or that session, and then purge; nothing was changed"
        )
    scratch = _Overlay(store)
    if before:
        scratch.add_line(name, [replace(turn, session=name) for turn in before], expected=None)
    left = [turn for turn in _without(line[number:], place) if turn.entries]
    runner = runner_on(scratch)
    rebuilt = yield from replay(scratch, runner, name, left, recent_messages=recent_messages, cancelled=cancelled)
    if rebuilt:
        note = f"rebuilt without message {knew.start + place + 1} of the line, which was forgotten"
        rebuilt[0] = replace(rebuilt[0], note="; ".join(filter(None, (rebuilt[0].note, note))))
        store.add_line(name, rebuilt, expected=info.head)
    else:
        store.move_head(name, before[-1].id if before else None, expected=info.head)
    if purge:
        store.erase(name, _knowing(store.log(name), [*before, *rebuilt], knew.entries[place]))
    return rebuilt[-1].id if rebuilt else before[-1].id if before else None


class _Overlay(MemoryStore):
    """A store to try things in. States that it doesn't have are read from the one below."""

    def __init__(self, under: StateStore) -> None:
        super().__init__()
        self._under = under

    def snapshot(self, id: str) -> Snapshot:
        found = super().snapshot(id)
        return found if found.state else replace(found, state=self._under.snapshot(id).state)


def _found(name: str, line: Sequence[Snapshot], message: str) -> tuple[int, int]:
    """Which turn of the line holds a message, and at which place; of several with the same id, the newest."""
    for number in reversed(range(len(line))):
        for place, entry in enumerate(line[number].entries):
            if message in (entry.message_id, f"{line[number].id}/{place}"):
                return number, place
    raise SessionError(
        f"message {message!r} is not on the line of session {name!r}: give its id, or SNAPSHOT/PLACE as in the log; "
        "a message on a part that was pruned can only be forgotten with the session"
    )


def _without(turns: Sequence[Snapshot], place: int) -> list[Snapshot]:
    """The turns without the message at a place of the first, and without the results of the calls it made."""
    first, *later = turns
    gone = first.entries[place]
    called = {call.id for call in _message(gone).tool_calls}
    rest = [replace(first, entries=(*first.entries[:place], *first.entries[place + 1 :])), *later]
    return [replace(turn, entries=tuple(e for e in turn.entries if not _answers(e, called))) for turn in rest]


def _answers(entry: Entry, calls: set[str]) -> bool:
    return bool(calls) and entry.role == "tool" and _message(entry).tool_call_id in calls


def _message(entry: Entry) -> Message:
    assert entry.text is not None
    return Message.model_validate_json(entry.text)


def _knowing(log: Sequence[Snapshot], kept: Sequence[Snapshot], message: Entry) -> list[str]:
    """The snapshots of a session, off its line, whose states may know a message: it or what came before holds it."""
    by_id = {turn.id: turn for turn in log}
    stay = {turn.id for turn in kept}

    def knows(turn: Snapshot) -> bool:
        while turn.id not in stay:
            if any(entry.digest == message.digest for entry in turn.entries):
                return True
            if turn.parent is None or turn.parent not in by_id:
                return turn.turn > 1  # what came before was pruned: it may have held it
            turn = by_id[turn.parent]
        return False

    return [turn.id for turn in log if turn.id not in stay and knows(turn)]
