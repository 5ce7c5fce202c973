"""A session's memory, made anew from its texts: for another adapter, or another backbone."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from deltamem_agents.engine.records import Request
from deltamem_agents.engine.turns import Feeding, TurnRunner
from deltamem_agents.errors import SessionError
from deltamem_agents.generation import GenerationOptions
from deltamem_agents.messages import Message
from deltamem_agents.store import MemoryStore, Snapshot, StateStore
from deltamem_agents.store.checks import unknown_session


def rebuild_session(
    store: StateStore,
    name: str,
    *,
    recent_messages: int,
    runner_on: Callable[[StateStore], TurnRunner],
    cancelled: Callable[[], bool],
) -> Feeding[int]:
    """Replays all that a session's line says, turn by turn, and moves the session to the line that comes of it.

    The old line stays in the log until it is pruned. All or nothing: it goes into the store in one transaction.

    Args:
        store: where the session is.
        name: the session.
        recent_messages: the window, which decides where replays start, as in live turns.
        runner_on: makes a runner that works on a given store.
        cancelled: asked between parts; then nothing was done.

    Returns:
        The number of turns.

    Raises:
        SessionNotFoundError: there is no such session.
        SessionError: texts are missing: only `transcript="full"` keeps them all.
        ConflictError: the session went on meanwhile.
    """
    info = store.session(name)
    if info is None:
        raise unknown_session(name)
    line = [] if info.head is None else store.line(info.head)
    missing = sum(entry.text is None for turn in line for entry in turn.entries) + (line[0].start if line else 0)
    if missing:
        raise SessionError(
            f"session {name!r} cannot be rebuilt: the texts of {missing} of its {info.messages} messages are not kept; "
            'keep them next time with transcript="full"'
        )
    scratch = MemoryStore()
    runner = runner_on(scratch)
    rebuilt = yield from replay(scratch, runner, name, line, recent_messages=recent_messages, cancelled=cancelled)
    if rebuilt:
        store.add_line(name, rebuilt, expected=info.head)
    return len(line)


def replay(
    store: StateStore,
    runner: TurnRunner,
    name: str,
    turns: Sequence[Snapshot],
    *,
    recent_messages: int,
    cancelled: Callable[[], bool],
) -> Feeding[list[Snapshot]]:
    """Absorbs turns into a session again, and gives them as they are then: new ids and states, all else as it was.

    Args:
        store: where the session is.
        runner: works on that store.
        name: the session.
        turns: what to absorb, with texts.
        recent_messages: the window.
        cancelled: asked between parts.
    """
    rebuilt = []
    for turn in turns:
        id = yield from runner.absorb(_request(name, turn, recent_messages), cancelled)
        rebuilt.append(_as(store.snapshot(id), turn))
    return rebuilt


def _request(name: str, turn: Snapshot, recent_messages: int) -> Request:
    return Request(
        messages=tuple(Message.model_validate_json(entry.text) for entry in turn.entries if entry.text is not None),
        session=name,
        thread=turn.thread,
        memory="read_write",
        recent_messages=recent_messages,
        options=GenerationOptions.parse({"max_new_tokens": 1}),
    )


def _as(new: Snapshot, old: Snapshot) -> Snapshot:
    """The new state of an old turn."""
    entries = tuple(
        replace(fresh, message_id=known.message_id) for fresh, known in zip(new.entries, old.entries, strict=True)
    )
    return replace(new, kind=old.kind, created_at=old.created_at, key=old.key, note=old.note, entries=entries)
