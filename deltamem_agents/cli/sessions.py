"""`deltamem sessions`: what a store remembers, without loading a model."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from deltamem_agents.cli.console import count, note, out
from deltamem_agents.cli.options import StoreOption
from deltamem_agents.errors import SessionNotFoundError, StoreError

if TYPE_CHECKING:
    from deltamem_agents.store import Entry, SessionInfo, Snapshot, StateStore

app = typer.Typer(no_args_is_help=True, help="List, show and forget sessions.")

NameArgument = Annotated[str, typer.Argument(help="The session.")]


@app.command("list")
def list_sessions(store: StoreOption = None) -> None:
    """List the sessions in a store."""
    with _open(store) as opened:
        infos = opened.sessions()
    if not infos:
        note("There are no sessions yet: `deltamem chat --session NAME` starts one.")
        return
    table = Table("Session", box=SIMPLE_HEAD)
    for title in ("Turns", "Messages", "State"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("Updated", no_wrap=True)
    for info in infos:
        numbers = (str(info.turns), str(info.messages), decimal(info.state_bytes))
        table.add_row(Text(info.name, overflow="fold"), *numbers, _local(info.updated_at))
    out.print(table)


@app.command()
def show(name: NameArgument, store: StoreOption = None) -> None:
    """Show a session's log and how strong its memory is in each layer."""
    with _open(store) as opened:
        info = _find(opened, name)
        line = opened.line(info.head) if info.head is not None else []
        state = opened.snapshot(info.head).state if info.head is not None else None
    size = f"{_length(info)}, {decimal(info.state_bytes)} of state"
    out.print(Text(f"{name}: {size}; begun {_local(info.created_at)}, updated {_local(info.updated_at)}"))
    if info.fingerprint is not None:
        out.print(Text(f"fingerprint {info.fingerprint}", style="dim"), soft_wrap=True)
    if state is not None:
        out.print(_log(line))
        out.print(_norms(state))


@app.command()
def forget(
    name: NameArgument,
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Delete a session for good: its memory, its log and its texts."""
    with _open(store) as opened:
        info = _find(opened, name)
        if not yes:
            question = f"Delete session {name!r} ({_length(info)}) for good?"
            typer.confirm(question, abort=True, err=True)
        opened.forget(name)
    note(f"Forgotten: {name}.")


def _open(spec: str | None) -> "StateStore":
    """Opens a store, but creates none where one was named."""
    from deltamem_agents.store import open_store

    if spec is not None and "://" not in spec and not Path(spec).expanduser().exists():
        raise StoreError(f"there is no store at {spec}: expected a SQLite file or a database URL; check --store")
    return open_store(spec)


def _find(store: "StateStore", name: str) -> "SessionInfo":
    info = store.session(name)
    if info is None:
        raise SessionNotFoundError(f"there is no session {name!r} in this store: see `deltamem sessions list`")
    return info


def _length(info: "SessionInfo") -> str:
    return f"{count(info.turns, 'turn')}, {count(info.messages, 'message')}"


def _log(line: "list[Snapshot]") -> Table:
    """A row for each message, turns apart."""
    table = Table("Turn", "Time", "Thread", "Role", "Memory", "Text", box=SIMPLE_HEAD)
    for column, wraps in zip(table.columns, (False, False, True, False, False, True), strict=True):
        column.no_wrap = not wraps
        column.overflow = "fold"
    for snapshot in line:
        number = str(snapshot.turn) if snapshot.kind == "turn" else f"{snapshot.turn} ({snapshot.kind})"
        about = (number, _local(snapshot.created_at), Text(snapshot.thread))
        for entry in snapshot.entries:
            table.add_row(*about, Text(entry.role), "written" if entry.written else "–", _text(entry))
            about = ("", "", Text())
    return table


def _text(entry: "Entry") -> Text:
    from deltamem_agents.messages import Message

    if entry.text is None:
        return Text("not kept", style="dim")
    return Text(Message.model_validate_json(entry.text).content)


def _norms(state: bytes) -> Table:
    """The Frobenius norm of each layer's state, all heads together."""
    from deltamem_agents.state import MemoryState

    norms = MemoryState.from_bytes(state).tensor[0].flatten(1).norm(dim=1).tolist()
    table = Table("Layer", "Norm", "", box=SIMPLE_HEAD)
    for layer, norm in enumerate(norms):
        table.add_row(str(layer), f"{norm:.3f}", Bar(max(*norms, 1e-9), 0, norm, width=40))
    return table


def _local(time: datetime) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}"
