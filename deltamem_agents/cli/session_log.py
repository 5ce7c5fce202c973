"""A session's log: a line for each commit, those that the session has gone back from told apart."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from deltamem_agents.cli.console import count, out
from deltamem_agents.cli.stored import local, short

if TYPE_CHECKING:
    from deltamem_agents.store import Entry, Snapshot

INDENT = 6


def print_log(log: "Sequence[Snapshot]", *, line: "Sequence[Snapshot]", texts: bool) -> None:
    """Prints commits, oldest first.

    Args:
        log: all commits of the session.
        line: those of its line; the last one is the head.
        texts: whether to print what was said, too.
    """
    head, on_line = line[-1].id if line else None, {snapshot.id for snapshot in line}
    width = max((len(snapshot.thread) for snapshot in log), default=0)
    for snapshot in log:
        mark = "head" if snapshot.id == head else "" if snapshot.id in on_line else "left"
        out.print(_commit(snapshot, mark, width), soft_wrap=True)
        if texts and snapshot.entries:
            out.print(Padding(_messages(snapshot), (0, 0, 0, INDENT)))


def _commit(snapshot: "Snapshot", mark: str, thread_width: int) -> Text:
    what = f"{'absorbed ' if snapshot.kind == 'absorb' else ''}{count(len(snapshot.entries), 'message')}"
    text = Text(style="dim" if mark == "left" else "")
    text.append(f"{mark:<{INDENT}}", style="green")
    text.append(f"{short(snapshot.id)}  ", style="yellow")
    text.append(f"turn {snapshot.turn:<3}  {local(snapshot.created_at)}  {snapshot.thread:<{thread_width}}  {what}")
    if snapshot.note is not None:
        text.append(f"  ({snapshot.note})", style="italic")
    return text


def _messages(snapshot: "Snapshot") -> Table:
    grid = Table.grid("", "", "", "", padding=(0, 2, 0, 0))
    grid.columns[3].overflow = "fold"
    for place, entry in enumerate(snapshot.entries):
        handle = Text(f"{short(snapshot.id)}/{place}", style="yellow")
        grid.add_row(handle, Text(entry.role, style="cyan"), "written" if entry.written else "–", _text(entry))
    return grid


def _text(entry: "Entry") -> Text:
    from deltamem_agents.messages import Message

    if entry.text is None:
        return Text("not kept", style="dim")
    message = Message.model_validate_json(entry.text)
    calls = (f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})" for call in message.tool_calls)
    return Text("\n".join(part for part in (message.content, *calls) if part))
