"""`deltamem sessions`: memories as branches of commits: seen, forked, rolled back, moved and deleted."""

import json
import os
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from deltamem_agents.cli.console import count, note, out
from deltamem_agents.cli.loading import BUNDLED, load_engine
from deltamem_agents.cli.options import AdapterOption, ModelOption, StoreOption
from deltamem_agents.cli.stored import (
    find_session,
    find_snapshot,
    length,
    local,
    open_existing,
    short,
    store_name,
    store_option,
)
from deltamem_agents.errors import SessionNotFoundError, StoreError

app = typer.Typer(no_args_is_help=True, help="List, show, fork, roll back, move and forget sessions.")

NameArgument = Annotated[str, typer.Argument(help="The session.")]
NewNameArgument = Annotated[str, typer.Argument(help="The name of the new session.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Don't ask.")]


@app.command("list")
def list_sessions(
    store: StoreOption = None,
    prefix: Annotated[str, typer.Option(help="Only names that begin so.")] = "",
    after: Annotated[str | None, typer.Option(help="Only names after this one, in order.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1000,
) -> None:
    """List the sessions in a store, by name."""
    with open_existing(store) as opened:
        infos = opened.sessions(prefix=prefix, after=after, limit=limit + 1)
    if not infos:
        if prefix or after is not None:
            note("There are no sessions with such names.")
        else:
            where = store_name(store)
            note(f"No sessions in {where}: `deltamem chat --session NAME` starts one. Another store: --store FILE.")
        return
    infos, more = infos[:limit], len(infos) > limit
    table = Table("Session", box=SIMPLE_HEAD)
    for title in ("Turns", "Messages", "State"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("Updated", no_wrap=True)
    for info in infos:
        numbers = (str(info.turns), str(info.messages), decimal(info.state_bytes))
        table.add_row(Text(info.name, overflow="fold"), *numbers, local(info.updated_at))
    out.print(table)
    if more:
        note(f"There are more: go on with --after {shlex.quote(infos[-1].name)}.")


@app.command()
def log(
    name: NameArgument,
    store: StoreOption = None,
    texts: Annotated[bool, typer.Option("--texts", help="Also print what was said, and what was written.")] = False,
) -> None:
    """Print a session's commits, oldest first; "left" are those that it has gone back from."""
    from deltamem_agents.cli.session_log import print_log

    with open_existing(store) as opened:
        info = find_session(opened, name, store)
        commits = opened.log(name)
        line = opened.line(info.head) if info.head is not None else []
    if not line:
        note(f"Session {name} is empty.")
    print_log(commits, line=line, texts=texts)


@app.command()
def show(
    name: NameArgument,
    store: StoreOption = None,
    writes: Annotated[
        bool, typer.Option("--writes", help="Load the model and show what the last turn wrote, and how strongly.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    model: ModelOption = BUNDLED,
    adapter: AdapterOption = None,
) -> None:
    """Show how strong a session's memory is and where, and how much of it is new."""
    from deltamem_agents.engine.inspection import stored_view

    with open_existing(store) as opened:
        info = find_session(opened, name, store)
        if not writes:
            view = stored_view(opened, name)
    if writes:
        with load_engine(model, adapter=adapter, store=store) as engine:
            view = engine.session(name).inspect()
    if as_json:
        typer.echo(json.dumps(view.as_dict(), indent=2, ensure_ascii=False))
        return
    size = f"{length(info)}, {decimal(info.state_bytes)} of state"
    out.print(Text(f"{name}: {size}; begun {local(info.created_at)}, updated {local(info.updated_at)}"))
    if view.snapshot is None:
        note("It is empty.")
        return
    out.print(Text(f"snapshot {short(view.snapshot)}, fingerprint {info.fingerprint}", style="dim"), soft_wrap=True)

    from deltamem_agents.cli.memory_view import print_memory

    print_memory(view)


@app.command()
def report(
    name: NameArgument,
    store: StoreOption = None,
    output: Annotated[Path | None, typer.Option(help="The file to write. Default: the session's name, .html.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    writes: Annotated[
        bool, typer.Option("--writes", help="Load the model and show what the last turns wrote, word by word.")
    ] = False,
    last: Annotated[int, typer.Option(min=1, help="With --writes: how many turns.")] = 10,
    ask: Annotated[bool, typer.Option("--ask", help="Load the model and show what the memory answers.")] = False,
    model: ModelOption = BUNDLED,
    adapter: AdapterOption = None,
) -> None:
    """Write an HTML page of a session: its memory in pictures, and with --ask in words; its log and its sizes."""
    from deltamem_agents.report import recent_writes, session_page

    with open_existing(store) as opened:
        info = find_session(opened, name, store)
        file = output or Path(re.sub(r"[^\w-]+", "-", name)[:60] + ".html")
        if file.exists() and not force:
            raise StoreError(f"{file} exists: choose another file with --output, or overwrite it with --force")
        asked = (writes or ask) and info.head is not None
        if not asked:
            page = session_page(opened, name)
    if asked:
        with load_engine(model, adapter=adapter, store=store) as engine:
            page = session_page(
                engine.store,
                name,
                writes=recent_writes(engine, name, turns=last) if writes else None,
                answers=engine.remembered(name) if ask else None,
            )
    try:
        _write_private(file, page)
    except OSError as error:
        raise StoreError(f"{file} cannot be written ({error}): check its folder, permissions and disk") from error
    note(f"{file}: {length(info)}, {decimal(file.stat().st_size)}.")


@app.command()
def fork(
    name: NameArgument,
    new: NewNameArgument,
    store: StoreOption = None,
    at: Annotated[str | None, typer.Option(help="A snapshot of the line, as in the log. Default: the head.")] = None,
) -> None:
    """Begin another session with this one's memory; both go on independently."""
    from deltamem_agents.engine.records import check_session_name

    check_session_name(new)
    with open_existing(store) as opened:
        find_session(opened, name, store)
        opened.fork(name, new, at=None if at is None else find_snapshot(opened, name, at, store).id)
        forked = find_session(opened, new, store)
    note(f"{new}: {length(forked)}.")


@app.command()
def rollback(
    name: NameArgument,
    store: StoreOption = None,
    to: Annotated[str | None, typer.Option(help="The snapshot to go to, as in the log.")] = None,
    turns: Annotated[int | None, typer.Option(min=1, help="How many turns to go back.")] = None,
    yes: YesOption = False,
) -> None:
    """Take turns back; `--to` also goes forward again, until the line that was left is pruned."""
    if (to is None) == (turns is None):
        raise typer.BadParameter("give either --to SNAPSHOT or --turns N")
    from deltamem_agents.engine.going_back import rolled_back

    with open_existing(store) as opened:
        info = find_session(opened, name, store)
        target = None if to is None else find_snapshot(opened, name, to, store)
        if not yes:
            where = count(turns or 0, "turn") + " back" if target is None else _place(target.id, target.turn)
            typer.confirm(f"Move session {name!r} ({length(info)}) {where}?", abort=True, err=True)
        rolled_back(opened, name, None if target is None else target.id, turns=turns)
        now = find_session(opened, name, store)
    note(f"{name}: {length(now)}.")
    if info.head is not None and info.head != now.head:
        _tell_undoing(name, info.head, store)


@app.command()
def forget(name: NameArgument, store: StoreOption = None, yes: YesOption = False) -> None:
    """Delete a session for good: its memory, its log and its texts."""
    with open_existing(store) as opened:
        info = opened.session(name)
        if info is not None and not yes:
            question = f"Delete session {name!r} ({length(info)}) for good?"
            typer.confirm(question, abort=True, err=True)
        try:
            opened.forget(name)  # a second time it ends what a reader was in the way of
        except SessionNotFoundError:
            find_session(opened, name, store)  # which says so in the words of the command line
            raise
    note(f"Forgotten: {name}.")


@app.command("forget-message")
def forget_message(
    name: NameArgument,
    message: Annotated[str, typer.Argument(help="SNAPSHOT/PLACE, as `log --texts` prints it, or the message's id.")],
    store: StoreOption = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="Also delete for good every snapshot and text that knew the message.")
    ] = False,
    yes: YesOption = False,
    model: ModelOption = BUNDLED,
    adapter: AdapterOption = None,
) -> None:
    """Rebuild a session's memory without one message, where texts are kept."""
    with open_existing(store) as opened:
        info = find_session(opened, name, store)
        snapshot, slash, place = message.rpartition("/")
        if slash and place.isdecimal():
            message = f"{find_snapshot(opened, name, snapshot, store).id}/{place}"
    if purge and not yes:
        question = f"Delete all that session {name!r} ({length(info)}) holds of message {message!r}, for good?"
        typer.confirm(question, abort=True, err=True)
    with load_engine(model, adapter=adapter, store=store) as engine:
        engine.forget_message(name, message, purge=purge)
        now = engine.info(name)
    note(f"{name}: {length(now)}.")
    if info.head is not None and not purge:
        _tell_undoing(name, info.head, store)


@app.command()
def remembered(
    name: NameArgument,
    store: StoreOption = None,
    question: Annotated[
        list[str] | None, typer.Option(help="What to ask; may be given several times. Default: a set of questions.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print questions and answers as JSON.")] = False,
    model: ModelOption = BUNDLED,
    adapter: AdapterOption = None,
) -> None:
    """Ask a session's memory what it remembers; nothing of that is kept."""
    with open_existing(store) as opened:
        find_session(opened, name, store)
    with load_engine(model, adapter=adapter, store=store) as engine:
        session = engine.session(name)
        answers = session.remembered(question) if question else session.remembered()
    if as_json:
        typer.echo(json.dumps([asdict(answer) for answer in answers], indent=2, ensure_ascii=False))
        return
    for answer in answers:
        out.print(Text(answer.question, style="cyan"))
        out.print(Padding(Text(answer.answer), (0, 0, 0, 2)))


@app.command("export")
def export(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    store: StoreOption = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a session's line to a file, with all that an import needs to go on."""
    from deltamem_agents.store import export_session

    with open_existing(store) as opened:
        find_session(opened, name, store)
        if file.exists() and not force:
            raise StoreError(f"{file} exists: choose another file, or overwrite it with --force")
        snapshots = export_session(opened, name, file)
    note(f"{file}: {count(snapshots, 'snapshot')}, {decimal(file.stat().st_size)}.")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    store: StoreOption = None,
    name: Annotated[str | None, typer.Option("--as", help="Under another name.")] = None,
) -> None:
    """Take in a session from a file; the store is created if need be."""
    from deltamem_agents.engine.records import check_session_name
    from deltamem_agents.store import import_session, open_store

    if name is not None:
        check_session_name(name)
    if not file.is_file():
        raise StoreError(f"there is no file {file}: expected what `deltamem sessions export` wrote")
    with open_store(store) as opened:
        imported = find_session(opened, import_session(opened, file, name=name), store)
    note(f"{imported.name}: {length(imported)}.")


@app.command()
def rebuild(
    name: Annotated[str | None, typer.Argument(help="The session.", show_default=False)] = None,
    store: StoreOption = None,
    every: Annotated[
        bool, typer.Option("--all", help="All sessions of other models and adapters; go on where it was stopped.")
    ] = False,
    prefix: Annotated[str, typer.Option(help="With --all: only names that begin so.")] = "",
    model: ModelOption = BUNDLED,
    adapter: AdapterOption = None,
) -> None:
    """Make a session's memory anew from its texts, or all of them, under another model or adapter."""
    if every != (name is None):
        raise typer.BadParameter("give either a session's name or --all")
    with open_existing(store) as opened:
        if name is not None:
            find_session(opened, name, store)
    with load_engine(model, adapter=adapter, store=store) as engine:
        if name is None:
            from deltamem_agents.cli.rebuild_all import rebuild_all

            rebuild_all(engine, prefix=prefix)
        else:
            turns = engine.session(name).rebuild()
            note(f"Rebuilt: {name}, {count(turns, 'turn')}.")


def _write_private(file: Path, text: str) -> None:
    """Writes a file that its owner alone may read, as the store is; one that was there becomes so too."""
    with open(file, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as opened:
        if file.is_file():
            file.chmod(0o600)
        opened.write(text)


def _place(snapshot: str, turn: int) -> str:
    return f"to snapshot {short(snapshot)}, turn {turn}"


def _tell_undoing(name: str, head: str, store: str | None) -> None:
    command = f"deltamem sessions rollback {shlex.quote(name)} --to {short(head)}{store_option(store)}"
    note(f"`{command}` undoes this.")
