"""The page: what a store tells about a session, laid out for people. Jinja escapes whatever users have said."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from deltamem_agents.engine.inspection import MemoryView, stored_view
from deltamem_agents.engine.last_turn import LastTurn
from deltamem_agents.engine.records import Recollection
from deltamem_agents.report.chart import HEIGHT, WIDTH, turn_chart
from deltamem_agents.report.heat import NEGATIVE, POSITIVE, heat_map
from deltamem_agents.report.history import turn_changes
from deltamem_agents.report.words import templates
from deltamem_agents.state import MemoryState
from deltamem_agents.store import Snapshot, StateStore
from deltamem_agents.store.checks import unknown_session

FULL_COLOUR = 0.97
"""The quantile of sizes that is drawn in full colour, and all beyond it: a few outliers shall not pale all the rest."""
OPEN_TURNS = 20
"""How many commits of the log are unfolded."""


@dataclass(frozen=True, slots=True)
class LayerPicture:
    """One layer's memory."""

    number: int
    heat: str
    """Its heads, as a `data:` URL."""
    norm: float
    share: float
    """Its norm against the strongest layer's, 0 to 1."""
    directions: float
    """In use, the mean over its heads."""


@dataclass(frozen=True, slots=True)
class ThreadSize:
    """What one conversation of the session would take in a prompt."""

    name: str
    messages: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the store keeps of the session."""

    state: int
    """Bytes of one state."""
    kept: int
    """Snapshots kept, on the line and left."""
    texts: int
    """Bytes of messages' texts."""
    threads: tuple[ThreadSize, ...]


def session_page(
    store: StateStore,
    session: str,
    *,
    writes: Mapping[str, LastTurn] | None = None,
    answers: Sequence[Recollection] | None = None,
) -> str:
    """A page of HTML that needs nothing else: states as heat maps, what each turn wrote, the log, and sizes.

    Args:
        store: where the session is.
        session: its name.
        writes: what turns wrote, by snapshot, from `recent_writes`; None: the page says how to get them.
        answers: what its memory answers, from `engine.remembered`; None: the page says how to get them.

    Raises:
        SessionNotFoundError: there is no such session.
        StateError: a state cannot be read.
        StoreError: the store cannot be read.
    """
    info = store.session(session)
    if info is None:
        raise unknown_session(session)
    log, view = store.log(session), stored_view(store, session)
    line = [] if info.head is None else store.line(info.head)
    changes = turn_changes(store, line)
    return templates("deltamem_agents.report").get_template("session.html").render(
        info=info,
        shell=shlex.quote,
        view=view,
        heads=len(view.norms[0]) if view.norms else 0,
        layers=layer_pictures(store, view),
        colours={"positive": POSITIVE, "negative": NEGATIVE},
        chart=turn_chart(changes) if changes else None,
        width=WIDTH,
        height=HEIGHT,
        new={change.turn.id: change.new for change in changes},
        writes=writes,
        answers=answers,
        darkest=darkest((writes or {}).values()),
        gated=any(message.reads for last in (writes or {}).values() for message in last.messages),
        written=[(turn, writes[turn.id]) for turn in reversed(line) if turn.id in writes] if writes else [],
        line={turn.id for turn in line},
        recent=log[::-1][:OPEN_TURNS],
        older=log[::-1][OPEN_TURNS:],
        sizes=sizes_of(info.state_bytes, log, line),
    )


def layer_pictures(store: StateStore, view: MemoryView) -> list[LayerPicture]:
    """Each layer in colours of its own scale: the last ones are many times stronger than the first."""
    if view.snapshot is None:
        return []
    state: Tensor = MemoryState.from_bytes(store.snapshot(view.snapshot).state).tensor[0]
    norms = state.flatten(1).norm(dim=1).tolist()
    strongest = max(norms) or 1.0
    return [
        LayerPicture(
            number,
            heat_map(heads, top=_full_colour(heads.abs().flatten().tolist())),
            norm,
            norm / strongest,
            sum(used) / len(used),
        )
        for number, (heads, norm, used) in enumerate(zip(state, norms, view.directions, strict=True))
    ]


def sizes_of(state: int, log: Sequence[Snapshot], line: Sequence[Snapshot]) -> Sizes:
    """What is kept of a session, of which a state takes so many bytes."""
    newest = {turn.thread: turn for turn in line}  # the last of each thread stays
    threads = (ThreadSize(name, turn.thread_messages, turn.thread_tokens) for name, turn in newest.items())
    kept = {turn.id: turn for turn in (*log, *line)}
    texts = sum(len((entry.text or "").encode()) for turn in kept.values() for entry in turn.entries)
    return Sizes(state, len(kept), texts, tuple(threads))


def darkest(turns: Iterable[LastTurn]) -> float:
    """The strength of a write that is shaded darkest."""
    return _full_colour([w.strength for last in turns for m in last.messages for w in m.writes or ()])


def _full_colour(sizes: Sequence[float]) -> float:
    ordered = sorted(sizes) or [0.0]
    return ordered[int(FULL_COLOUR * (len(ordered) - 1))] or ordered[-1] or 1.0
