"""`deltamem evaluate`: whether the memory remembers, with controls beside it."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from deltamem_agents.cli.console import note
from deltamem_agents.cli.loading import BUNDLED, load_engine
from deltamem_agents.cli.options import AdapterOption, ModelOption

app = typer.Typer(no_args_is_help=True, help="Evaluate a model and its adapter.")


@app.callback()
def _evaluate() -> None:
    """Keeps `recall` a command of its own while it is the only one."""


@app.command()
def recall(
    episodes: Annotated[int, typer.Option(min=2, help="Episodes of each kind.")] = 200,
    facts: Annotated[list[int], typer.Option(min=1, help="Facts told in an episode; may be given again.")] = [1, 3],  # noqa: B006
    values: Annotated[
        Literal["listed", "unseen", "both"], typer.Option(help="Values that training knew, or words it never saw.")
    ] = "both",
    seed: Annotated[int, typer.Option(help="Draws the episodes.")] = 0,
    model: ModelOption = BUNDLED,
    adapter: AdapterOption = None,
    output: Annotated[Path | None, typer.Option(help="Also write the results to this file, as JSON.")] = None,
) -> None:
    """Tell facts, then ask for them with nothing in the prompt: the state alone must know."""
    with load_engine(model, adapter=adapter, store=":memory:") as engine:
        from deltamem_agents.evaluate import ValueKind, evaluate_recall

        kinds: tuple[ValueKind, ...] = ("listed", "unseen") if values == "both" else (values,)
        report = evaluate_recall(engine, episodes=episodes, facts=facts, values=kinds, seed=seed, progress=note)
    typer.echo(report.render())
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
