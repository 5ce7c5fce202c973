"""A memory on a terminal: how much of it is new, how strong it is and where, and what was written last."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from deltamem_agents.cli.console import count, note, out

if TYPE_CHECKING:
    from deltamem_agents.engine.inspection import MemoryView
    from deltamem_agents.engine.last_turn import LastTurn, MessageWrites, Write

STEPS = "▁▂▃▄▅▆▇█"
SHADES = ("", "on grey19", "on dark_green", "black on green3", "black on bright_yellow")
STRONGEST = 12
OPEN = 0.1  # reads that open less are not underlined
GATES = {
    "β": "how strongly a message was written, from 0 to 1.",
    "λ": "how much was kept of what was there before, from 0 to 1.",
    "g": "how far reads of the memory opened, from 0 to 1.",
}
DRIFT = 0.01  # less is float noise and the room that a reply took


def print_memory(view: "MemoryView") -> None:
    """Prints how much was replaced, a row for each layer, and what was written last as far as it is known."""
    out.print(_replaced(view.replaced))
    out.print(_layers(view))
    _print_legend(view)
    if view.last is not None:
        _print_last(view.last)


def _replaced(shares: dict[int, float]) -> Table:
    table = Table("Written by the last", "Share", "", box=SIMPLE_HEAD)
    for turns, share in shares.items():
        table.add_row(count(turns, "turn"), f"{share:.0%}", Bar(1.0, 0, share, width=40))
    return table


def _layers(view: "MemoryView") -> Table:
    """Norm of each layer, norms of its heads as steps of its strongest, directions in use, and the gates if known."""
    table = Table("Layer", "Norm", "", "Heads", f"Directions of {view.rank}", box=SIMPLE_HEAD)
    known = _gates(view)
    for name in known:
        table.add_column(name)
    totals = [sum(norm**2 for norm in heads) ** 0.5 for heads in view.norms]
    for layer, (heads, used) in enumerate(zip(view.norms, view.directions, strict=True)):
        steps = "".join(_step(norm, max(heads)) for norm in heads)
        bar = Bar(max(*totals, 1e-9), 0, totals[layer], width=20)
        about = (f"{sum(used) / len(used):.1f}", *(f"{gate[layer]:.3f}" for gate in known.values()))
        table.add_row(str(layer), f"{totals[layer]:.3f}", bar, steps, *about)
    return table


def _gates(view: "MemoryView") -> dict[str, tuple[float, ...]]:
    """The gates of each layer that are known, by their signs."""
    gates = (view.last.write_gates, view.last.keep_gates, view.last.read_gates) if view.last else ()
    return {sign: gate for sign, gate in zip(GATES, gates, strict=False) if gate}


def _print_legend(view: "MemoryView") -> None:
    """A line for each column that needs one."""
    directions = f"Directions: over how many of a head's {view.rank} its memory is spread; more keep more things apart."
    for line in (directions, *(f"{sign}: {GATES[sign]}" for sign in _gates(view))):
        out.print(Text(line, style="dim"), soft_wrap=True)


def _print_last(last: "LastTurn") -> None:
    gated = any(message.reads for message in last.messages)
    out.print("Written last, underlined where reads of the memory opened:" if gated else "Written last:")
    writes = [write for message in last.messages for write in message.writes or ()]
    strongest = max((write.strength for write in writes), default=0.0)
    for message in last.messages:
        out.print(_message(message, strongest))
    if writes:
        out.print(_strongest(writes))
    if last.drift is not None and last.drift > DRIFT:
        note(
            f"Running the turn again came to a state that differs by {last.drift:.0%} of the turn's change: it could "
            "not see all that the turn saw, such as a system prompt."
        )


def _message(message: "MessageWrites", strongest: float) -> Text:
    text = Text.assemble((message.role, "cyan"), "  ")
    if not message.written:
        text.append("not written", style="dim")
        if message.reads:
            text.append(f", reads open up to {max(read.gate for read in message.reads):.2f}: ", style="dim")
        for read in message.reads or ():
            text.append(read.text.replace("\n", "⏎"), style="underline" if read.gate >= OPEN else "dim")
        return text
    if message.writes is None or message.strength is None:
        return text.append("written; unknown how strongly: its text is not kept", style="dim")
    text.append(f"strength {message.strength:.3f} in {count(len(message.writes), 'write')}: ")
    for write in message.writes:
        shade = SHADES[_level(write.strength, strongest, len(SHADES))]
        opened = "underline" if (write.read_gate or 0.0) >= OPEN else ""
        text.append(write.text.replace("\n", "⏎"), style=f"{opened} {shade}".strip())
    return text


def _strongest(writes: "Sequence[Write]") -> Table:
    """The strongest writes, in order of appearance."""
    gated = [] if writes[0].read_gate is None else ["g"]
    table = Table("Strongest", "Strength", "", "β", "λ", *gated, box=SIMPLE_HEAD)
    table.columns[0].overflow = "fold"
    ranked = sorted(range(len(writes)), key=lambda n: -writes[n].strength)[:STRONGEST]
    for number in sorted(ranked):
        write = writes[number]
        bar = Bar(writes[ranked[0]].strength or 1.0, 0, write.strength, width=30)
        found = (write.write_gate, write.keep_gate, *([] if write.read_gate is None else [write.read_gate]))
        gates = (f"{gate:.3f}" for gate in found)
        table.add_row(Text(write.text.replace("\n", "⏎")), f"{write.strength:.3f}", bar, *gates)
    return table


def _step(number: float, most: float) -> str:
    return STEPS[_level(number, most, len(STEPS))]


def _level(number: float, most: float, levels: int) -> int:
    """Which of so many equal steps up to `most` a number is on."""
    return min(levels - 1, int(levels * number / most)) if most > 0 else 0
