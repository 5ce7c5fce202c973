"""What the newest turn of a line wrote into the memory: its messages, run again while a recorder listens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.backbone.load import context_length
from deltamem_agents.engine.prompts import PromptWriter, in_groups
from deltamem_agents.engine.recording import WriteRecorder
from deltamem_agents.engine.windows import Window, load_window
from deltamem_agents.generation import Piece, Row, feed
from deltamem_agents.messages import Message
from deltamem_agents.state import MemoryState
from deltamem_agents.store import Snapshot, StateStore

WINDOWS = (0, 8, 1, 2, 4, 16)
"""Of how many recent messages a turn may have been made, most likely first."""
SAME = 0.01
"""Less drift than this is float noise and the room that a reply took."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write: a token, or a span of tokens where the adapter writes spans."""

    text: str
    tokens: int
    strength: float
    """‖S_after − S_before‖ / ‖S_after‖, the mean over the layers: what share of the memory this write made."""
    write_gate: float
    """β, the mean over layers, heads and rows."""
    keep_gate: float
    """λ, likewise."""
    read_gate: float | None
    """g, the mean over layers, heads and its tokens: how far they read the memory; None where reads have no gate."""


@dataclass(frozen=True, slots=True)
class Read:
    """How one token read the memory."""

    text: str
    gate: float
    """g, the mean over layers and heads."""


@dataclass(frozen=True, slots=True)
class MessageWrites:
    """What one message of the last turn wrote, and how far its tokens read."""

    role: str
    written: bool
    """Whether the message went into the state; false: it was only read past."""
    writes: tuple[Write, ...] | None
    """In order; None: unknown, because texts of this turn are not kept."""
    strength: float | None
    """The sum over its writes; None likewise."""
    reads: tuple[Read, ...] | None
    """Its tokens, written or not; empty where reads have no gate, None likewise."""


@dataclass(frozen=True, slots=True)
class LastTurn:
    """What the newest turn wrote, found by running its messages again."""

    messages: tuple[MessageWrites, ...]
    write_gates: tuple[float, ...]
    """β of each layer, the mean over the turn's writes; empty when nothing was written or texts are not kept."""
    keep_gates: tuple[float, ...]
    """λ of each layer, likewise."""
    read_gates: tuple[float, ...]
    """g of each layer, the mean over the turn's tokens; empty where reads have no gate, or texts are not kept."""
    drift: float | None
    """‖S_run − S‖ / ‖S − S_parent‖: how far this run's state is from the stored one, against the turn's whole change.

    Above 0 where the run could not see what the turn saw: a system prompt, injected context, texts that are gone.
    None when nothing was written or run.
    """


def run_last_turn(
    model: DeltaMemModel, store: StateStore, writer: PromptWriter, line: Sequence[Snapshot], *, recent_messages: int
) -> LastTurn:
    """Runs the last turn of a line again, behind its window as far as texts are kept, and tells what it wrote.

    How much the turn's window held is not on record: where the usual one doesn't lead to the stored state, others are
    tried, and the nearest counts. Without the turn's own texts, or the state it started from, nothing can be run: then
    the strengths are None.
    """
    turn = line[-1]
    pruned = turn.parent is None and turn.turn > 1
    if pruned or any(entry.text is None for entry in turn.entries):
        unknown = (MessageWrites(entry.role, entry.written, None, None, None) for entry in turn.entries)
        return LastTurn(tuple(unknown), (), (), (), None)
    stored = MemoryState.from_bytes(store.snapshot(turn.id).state).tensor
    base = None if turn.parent is None else store.snapshot(turn.parent)
    change = (stored - _state(model, base).tensor.cpu()).norm()
    nearest: LastTurn | None = None
    for recent in (recent_messages, *(other for other in WINDOWS if other != recent_messages)):
        recorder = WriteRecorder(model)
        with torch.no_grad():
            messages, state = _run(model, store, writer, turn, base, recorder, recent)
        drift = float((state.tensor.cpu() - stored).norm() / change) if change > 0 else None
        gates = (recorder.write_gates, recorder.keep_gates)
        write_gates, keep_gates = (tuple(gate.mean(1).tolist()) if recorder.positions else () for gate in gates)
        read_gates = tuple(recorder.read_gates.mean(1).tolist()) if _gated(model) else ()
        found = LastTurn(messages, write_gates, keep_gates, read_gates, drift)
        if drift is None or drift < SAME:
            return found
        if nearest is None or drift < (nearest.drift or 0.0):
            nearest = found
    assert nearest is not None
    return nearest


def _run(
    model: DeltaMemModel,
    store: StateStore,
    writer: PromptWriter,
    turn: Snapshot,
    base: Snapshot | None,
    recorder: WriteRecorder,
    recent_messages: int,
) -> tuple[tuple[MessageWrites, ...], MemoryState]:
    """Feeds the turn after what a turn on `base` shows and replays; what was written, and the state it comes to."""
    new = [Message.model_validate_json(entry.text) for entry in turn.entries if entry.text is not None]
    alone = writer.render((), new, write=False)
    room = context_length(model.backbone) - len(alone.ids) + sum(alone.lengths)
    groups = [size for size in in_groups(alone.lengths, room) if size]
    window = Window(base, (), ())
    if len(groups) == 1:  # else they were absorbed in groups, each in a context of its own
        answers, size = bool(new) and new[0].role == "tool", sum(alone.lengths)
        window = load_window(store, base, turn.thread, recent=recent_messages, room=room, new=size, answers=answers)
    shown, replayed = window.shown, window.messages
    state, ids, done = _state(model, window.start), list[int](), 0
    for size in groups:
        rendered = writer.render(shown, [*replayed, *new[done : done + size]], write=True)
        own = sum(rendered.lengths[len(shown) + len(replayed) :])
        before, pieces = _cut(rendered.pieces, len(rendered.ids) - own)
        row = feed(model, Row(state), before)[0] if before else Row(state)
        with recorder:
            state = feed(model, row, pieces)[0].state
        ids += [token for piece in pieces for token in piece.ids]
        done, shown, replayed = done + size, (), ()
    reads = recorder.read_gates.mean(0).tolist() if _gated(model) else None
    return _by_message(writer, new, alone.lengths, ids, recorder, reads), state


def _gated(model: DeltaMemModel) -> bool:
    return model.adapter.config.read_gate != "off"


def _by_message(
    writer: PromptWriter,
    new: Sequence[Message],
    lengths: Sequence[int],
    ids: Sequence[int],
    recorder: WriteRecorder,
    gates: Sequence[float] | None,
) -> tuple[MessageWrites, ...]:
    """The recorded writes, each with the message that its tokens are in, and how far each token's read opened."""
    decode = writer.template.tokenizer.decode
    numbers = [t.mean(0).tolist() for t in (recorder.strengths, recorder.write_gates, recorder.keep_gates)]
    writes = [
        (
            positions[0],
            Write(
                text=str(decode([ids[p] for p in positions])),
                tokens=len(positions),
                strength=strength,
                write_gate=beta,
                keep_gate=lam,
                read_gate=None if gates is None else sum(gates[p] for p in positions) / len(positions),
            ),
        )
        for positions, strength, beta, lam in zip(recorder.positions, *numbers, strict=True)
    ]
    found, start = [], 0
    for message, length in zip(new, lengths, strict=True):
        mine = tuple(write for position, write in writes if start <= position < start + length)
        places = range(start, start + length) if gates is not None else ()
        reads = tuple(Read(str(decode([ids[p]])), gates[p]) for p in places if gates is not None)
        found.append(MessageWrites(message.role, bool(mine), mine, sum(write.strength for write in mine), reads))
        start += length
    return tuple(found)


def _state(model: DeltaMemModel, snapshot: Snapshot | None) -> MemoryState:
    """The state of a snapshot, or of the line's beginning, on the model's device."""
    return model.zero_state() if snapshot is None else MemoryState.from_bytes(snapshot.state).to(model.device)


def _cut(pieces: Sequence[Piece], at: int) -> tuple[list[Piece], list[Piece]]:
    """Pieces up to token `at`, and from there on."""
    first: list[Piece] = []
    rest: list[Piece] = []
    for piece in pieces:
        size = min(at, len(piece.ids))
        at -= size
        for part, side in ((slice(size), first), (slice(size, None), rest)):
            if piece.ids[part]:
                spans = piece.spans[part] if piece.spans is not None else None
                side.append(replace(piece, ids=piece.ids[part], spans=spans))
    return first, rest
