"""`deltamem doctor`: what this machine has, what that means, and what to install."""

import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from deltamem_agents.cli.console import err, out
from deltamem_agents.cli.findings import Finding, findings

STYLES = {"fine": "green", "absent": "yellow", "wrong": "bold red"}
MARKS = {"fine": "✓", "absent": "–", "wrong": "✗"}


def doctor(
    store: Annotated[
        str | None, typer.Option("--store", help="Look into this SQLite file or database URL. Default: your own store.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Say what this machine has for the memory, what that means, and what to install.

    Nothing is fetched. Something broken ends in exit code 1; what is merely absent doesn't.
    """
    with err.status("Looking"):
        found = list(findings(store))
    if as_json:
        typer.echo(json.dumps([each.model_dump() for each in found], indent=2, ensure_ascii=False))
    else:
        out.print(table(found))
    if any(each.state == "wrong" for each in found):
        raise typer.Exit(1)


def table(found: list[Finding]) -> Table:
    """Findings, a section for each part."""
    shown = Table(box=None, pad_edge=False, show_header=False, expand=False)
    for header in ("", "what", "found"):
        shown.add_column(header, overflow="fold", no_wrap=False)
    part = ""
    for each in found:
        if each.part != part:
            part = each.part
            shown.add_row("", Text(part.capitalize(), style="bold"), "")
        said = Text(each.found)
        if each.means:
            said.append(f"\n{each.means}", style="dim" if each.state == "fine" else STYLES[each.state])
        shown.add_row(Text(MARKS[each.state], style=STYLES[each.state]), each.name, said)
    return shown
