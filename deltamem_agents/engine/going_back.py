"""Moving a session's head to another of its commits."""

from deltamem_agents.errors import ConflictError, SessionError
from deltamem_agents.store import SessionInfo, StateStore
from deltamem_agents.store.checks import unknown_session


def rolled_back(store: StateStore, name: str, to: str | None = None, *, turns: int | None = None) -> str | None:
    """Moves a session's head to one of its commits, or so many turns back; gives the new head.

    Raises:
        SessionError: not exactly one of `to` and `turns`, a foreign commit, or turns that are not kept.
        SessionNotFoundError: there is no such session.
    """
    info = store.session(name)
    if info is None:
        raise unknown_session(name)
    if (to is None) == (turns is None):
        raise SessionError("rollback takes a snapshot id, or turns=…: give exactly one of them")
    if turns is not None:
        to = _back(store, info, turns)
    elif to not in {turn.id for turn in store.log(name)}:
        raise SessionError(
            f"snapshot {to!r} is not one of session {name!r}: it is another session's, or was pruned; see its log"
        )
    try:
        store.move_head(name, to, expected=info.head)
    except ConflictError:
        return rolled_back(store, name, to)  # somebody was faster; the commit is as much the session's as before
    return to


def _back(store: StateStore, info: SessionInfo, turns: int) -> str | None:
    line = [] if info.head is None else store.line(info.head)
    if not 0 <= turns <= info.turns:
        raise SessionError(f"cannot go back {turns} turns: session {info.name!r} has {info.turns}")
    if turns < len(line):
        return line[-1 - turns].id
    if turns == info.turns and (not line or line[0].start == 0):
        return None
    raise SessionError(
        f"cannot go back {turns} turns: of the {info.turns} of session {info.name!r} the last {len(line)} are kept, "
        "and the state before them was pruned; keep more snapshots next time (keep_snapshots)"
    )
