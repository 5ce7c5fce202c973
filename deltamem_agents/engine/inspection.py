"""Reading a memory: how strong it is and where, how full, how much of it is new, and what was written last."""

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.engine.last_turn import LastTurn, run_last_turn
from deltamem_agents.engine.prompts import PromptWriter
from deltamem_agents.errors import FingerprintError
from deltamem_agents.state import MemoryState
from deltamem_agents.store import Snapshot, StateStore
from deltamem_agents.store.checks import unknown_session

TURNS_BACK = (1, 4, 16, 64)

Grid = tuple[tuple[float, ...], ...]
"""A number for each layer and head."""


@dataclass(frozen=True, slots=True)
class MemoryView:
    """A session's memory, as numbers for people."""

    session: str
    snapshot: str | None
    """The head; None: the session is empty, and so are the numbers."""
    turns: int
    messages: int
    rank: int
    """r: the directions that each head has."""
    norms: Grid
    """Frobenius norm of each head's state."""
    directions: Grid
    """How many of its r directions each head uses; see `directions_in_use`."""
    replaced: dict[int, float]
    """The share of the memory that is younger than the last n turns' beginning, by n; see `replaced_share`."""
    last: LastTurn | None
    """What was written last; None where nobody asked, or the session is empty."""

    def as_dict(self) -> dict[str, object]:
        """The same as plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A few lines of text."""
        lines = [f"session {self.session!r}: {self.turns} turns, {self.messages} messages, snapshot {self.snapshot}"]
        lines += [f"replaced by the last {n} turns: {share:.0%}" for n, share in self.replaced.items()]
        for layer, (norms, used) in enumerate(zip(self.norms, self.directions, strict=True)):
            heads = "  ".join(f"{norm:.3f} ({use:.1f}/{self.rank})" for norm, use in zip(norms, used, strict=True))
            lines.append(f"layer {layer}: {heads}")
        for message in self.last.messages if self.last else ():
            strength = "text not kept" if message.strength is None else f"strength {message.strength:.3f}"
            opened = f", reads open up to {max(read.gate for read in message.reads):.2f}" if message.reads else ""
            lines.append(f"{message.role}: {strength if message.written else 'not written'}{opened}")
        return "\n".join(lines)


# --- what a state tells by itself


def head_norms(state: Tensor) -> Tensor:
    """Frobenius norm of each head's state: [layers, heads, r, r] -> [layers, heads]."""
    norms: Tensor = state.flatten(2).norm(dim=2)
    return norms


def directions_in_use(state: Tensor) -> Tensor:
    """The participation ratio of each head's singular values, (Σσ²)² / Σσ⁴: between 1 and r, 0 for a zero state.

    It is n when the energy is spread evenly over n directions: how many keys the head can tell apart well.

    Args:
        state: [layers, heads, r, r].
    """
    energy: Tensor = torch.linalg.svdvals(state.double()).square()
    return (energy.sum(-1).square() / energy.square().sum(-1)).nan_to_num(0.0).float()


def replaced_share(now: Tensor, then: Tensor) -> float:
    """The share of the energy of `now` that does not come from `then`, between 0 and 1.

    The energy of a head is its squared Frobenius norm ‖S‖². What comes from `then` is the part of S_now along S_then,
    max(0, ⟨S_now, S_then⟩)² / ‖S_then‖²; the rest, summed over layers and heads, is what was written since:

        1 − Σ max(0, ⟨S_now, S_then⟩)² / ‖S_then‖²  /  Σ ‖S_now‖²

    A memory that has only faded since counts as not replaced; one that started from zero, as replaced in full. A zero
    `now` holds nothing that could have been replaced: 0.

    Args:
        now: [layers, heads, r, r].
        then: an earlier state of the same line, [layers, heads, r, r].
    """
    now, then = now.double().flatten(2), then.double().flatten(2)
    energy = now.square().sum()
    if energy == 0:
        return 0.0
    kept = (now * then).sum(-1).clamp_min(0).square() / then.square().sum(-1)
    return float((1 - kept.nan_to_num(0.0).sum() / energy).clamp(0, 1))


def stored_view(store: StateStore, session: str) -> MemoryView:
    """All that a store tells about a session's memory without a model: everything but what was written last.

    Raises:
        SessionNotFoundError: there is no such session.
        StateError: its state cannot be read.
    """
    info = store.session(session)
    if info is None:
        raise unknown_session(session)
    if info.head is None:
        return MemoryView(session, None, 0, 0, 0, (), (), {}, None)
    now = _state(store, info.head)
    return MemoryView(
        session=session,
        snapshot=info.head,
        turns=info.turns,
        messages=info.messages,
        rank=now.shape[-1],
        norms=_grid(head_norms(now)),
        directions=_grid(directions_in_use(now)),
        replaced=_replaced(store, store.line(info.head), now),
        last=None,
    )


def _replaced(store: StateStore, line: list[Snapshot], now: Tensor) -> dict[int, float]:
    """For each number of turns that the line still reaches back to: how much of `now` is younger."""
    shares = {}
    for turns in TURNS_BACK:
        if turns < len(line):
            shares[turns] = replaced_share(now, _state(store, line[-1 - turns].id))
        elif turns == len(line) == line[-1].turn:  # back to the line's beginning, where the state is zero
            shares[turns] = replaced_share(now, torch.zeros_like(now))
    return shares


def _state(store: StateStore, id: str) -> Tensor:
    """[layers, heads, r, r] of a snapshot."""
    return MemoryState.from_bytes(store.snapshot(id).state).tensor[0]


def _grid(numbers: Tensor) -> Grid:
    return tuple(tuple(row) for row in numbers.tolist())


def inspect_session(
    model: DeltaMemModel,
    store: StateStore,
    writer: PromptWriter,
    session: str,
    *,
    fingerprint: str,
    recent_messages: int = 8,
    writes: bool = True,
) -> MemoryView:
    """`stored_view`, and with `writes` what the last turn wrote; see `run_last_turn`.

    Belongs on the thread that owns the model.

    Args:
        model: the model.
        store: where the session is.
        writer: renders the model's prompts.
        session: its name.
        fingerprint: of the model, that the session must belong to.
        recent_messages: the window that the turn was seen in, as of the engine.
        writes: whether to run the last turn again.

    Raises:
        SessionNotFoundError: there is no such session.
        FingerprintError: it was written under another backbone or adapter.
        StateError: its state cannot be read.
    """
    view = stored_view(store, session)
    if view.snapshot is None or not writes:
        return view
    line = store.line(view.snapshot)
    if line[-1].fingerprint != fingerprint:
        raise FingerprintError(
            f"session {session!r} was written under fingerprint {line[-1].fingerprint!r}, this backbone and adapter "
            f"have {fingerprint!r}: load the matching adapter, or rebuild the session from its text (`engine.rebuild`)"
        )
    return replace(view, last=run_last_turn(model, store, writer, line, recent_messages=recent_messages))
