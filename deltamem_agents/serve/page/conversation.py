"""A session's line as a conversation: what was said in each turn, and the other ways it went."""

from collections.abc import Sequence
from dataclasses import dataclass

from deltamem_agents.errors import SessionError
from deltamem_agents.messages import Message
from deltamem_agents.report.words import said
from deltamem_agents.store import SessionInfo, Snapshot, StateStore
from deltamem_agents.store.records import age

SHOWN = 20
"""Turns of the conversation that are shown at first, and for each "earlier"."""


@dataclass(frozen=True, slots=True)
class Said:
    """A message of a turn."""

    role: str
    text: str | None
    """None where it is not kept."""
    written: bool
    tokens: int
    handle: str
    """SNAPSHOT/PLACE, by which it can be forgotten or said again."""
    again: bool
    """Whether another version of it can be said in its place."""


@dataclass(frozen=True, slots=True)
class TurnShown:
    """A turn on the line."""

    turn: Snapshot
    messages: tuple[Said, ...]
    ways: tuple[str, ...]
    """The newest commit of each way that the session went from where this turn began; this turn's own among them."""
    way: int
    """Which of them this turn is on, counted from 0."""

    @property
    def question(self) -> Said | None:
        """The last message of the user, that the reply answers."""
        return next((said for said in reversed(self.messages) if said.role == "user"), None)


@dataclass(frozen=True, slots=True)
class Conversation:
    """The end of a session's line, or the part of it before a turn."""

    turns: tuple[TurnShown, ...]
    head: str | None
    earlier: int | None
    """The turn before which there is more to show; None: this is the beginning."""


def conversation(store: StateStore, info: SessionInfo | None, *, before: int | None = None) -> Conversation:
    """Reads it.

    Args:
        store: where the session is.
        info: the session; None: it is yet to begin.
        before: only turns before this one.
    """
    if info is None or info.head is None:
        return Conversation((), None, None)
    line = [turn for turn in store.line(info.head) if before is None or turn.turn < before]
    log = store.log(info.name)
    tips = _tips(log)
    parents = [None, *line]
    shown = [_shown(turn, parent, log, tips) for parent, turn in zip(parents, line, strict=False)][-SHOWN:]
    earlier = shown[0].turn.turn if len(shown) < len(line) else None
    return Conversation(tuple(shown), info.head, earlier)


def said_again(store: StateStore, session: str, handle: str, *, text: str | None) -> tuple[list[Message], str]:
    """What to ask an engine so that a message is said again in its place, and the thread to ask it in.

    The turn then goes back to where that message was said. The line that is left stays in the log.

    Args:
        store: where the session is.
        session: its name.
        handle: SNAPSHOT/PLACE of the message.
        text: what it says now; None: the same.

    Raises:
        SessionNotFoundError: there is no such session.
        SessionError: the message is none of the session's, its text is not kept, or nothing marks its place.
    """
    commits = {turn.id: turn for turn in store.log(session)}
    id, _, number = handle.partition("/")
    turn, place = commits.get(id), int(number) if number.isdecimal() else -1
    if turn is None or not 0 <= place < len(turn.entries) or (kept := turn.entries[place].text) is None:
        raise SessionError("this message is not kept in the session, so it cannot be said again: say it as a new one")
    parent = commits.get(turn.parent or "")
    if not _can_be_said_again(turn, place, parent):
        raise SessionError(
            "this message came without an id, at the beginning or after a message without one, so its place cannot be "
            "found again: go back to the turn before it, and say it there"
        )
    old = Message.model_validate_json(kept)
    new = old if text is None else old.model_copy(update={"content": text})
    if turn.entries[place].message_id is not None:
        return [new], turn.thread
    assert parent is not None, "what has no id follows a reply"
    assert parent.entries[-1].text is not None
    reply = Message.model_validate_json(parent.entries[-1].text).model_copy(update={"snapshot": parent.id})
    return [reply, new], turn.thread


def _can_be_said_again(turn: Snapshot, place: int, parent: Snapshot | None) -> bool:
    """By its own id, or as what follows a reply, whose snapshot names it."""
    entry = turn.entries[place]
    if entry.role != "user" or entry.text is None or (parent is None and turn.turn > 1):
        return False
    last = parent.entries[-1] if parent is not None and parent.entries else None
    after_reply = place == 0 and last is not None and last.role == "assistant" and last.text is not None
    return entry.message_id is not None or after_reply


def _shown(turn: Snapshot, parent: Snapshot | None, log: Sequence[Snapshot], tips: dict[str, Snapshot]) -> TurnShown:
    messages = tuple(
        Said(
            entry.role,
            said(entry),
            entry.written,
            entry.tokens,
            f"{turn.id}/{place}",
            _can_be_said_again(turn, place, parent),
        )
        for place, entry in enumerate(turn.entries)
    )
    known = turn.parent is not None or turn.turn == 1
    beside = [one for one in log if known and one.parent == turn.parent and one.turn == turn.turn]
    way = [one.id for one in beside].index(turn.id) if known else 0
    return TurnShown(turn, messages, tuple(tips[one.id].id for one in beside), way)


def _tips(turns: Sequence[Snapshot]) -> dict[str, Snapshot]:
    """For each commit the newest that goes on from it, or itself."""
    by_id = {turn.id: turn for turn in turns}
    tips: dict[str, Snapshot] = {}
    for turn in sorted(by_id.values(), key=age):
        at: Snapshot | None = turn
        while at is not None:
            tips[at.id] = turn
            at = by_id.get(at.parent or "")
    return tips
