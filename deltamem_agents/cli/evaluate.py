"""`deltamem evaluate`: whether the memory remembers, with controls beside it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deltamem_agents.cli.console import err, note
from deltamem_agents.cli.loading import BUNDLED, load_engine
from deltamem_agents.cli.options import AdapterOption, ModelOption
from deltamem_agents.errors import ConfigError

if TYPE_CHECKING:
    from deltamem_agents.evaluate import RecallReport

app = typer.Typer(no_args_is_help=True, help="Evaluate a model and its adapter.")


@app.callback()
def _evaluate() -> None:
    """Keeps `recall` a command of its own while it is the only one."""


@app.command()
def recall(
    rows: Annotated[str, typer.Option(help='Rows of the table, separated by commas, or "all".')] = "all",
    episodes: Annotated[int, typer.Option(min=2, help="Episodes of each kind and seed.")] = 200,
    seeds: Annotated[str, typer.Option(help="Each draws its own episodes; separated by commas.")] = "0",
    data: Annotated[
        Path | None, typer.Option(help="Folder with train/banking77 in it, for label maps. Default: built-in texts.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Text for the perplexity. Default: a built-in one.")] = None,
    model: ModelOption = BUNDLED,
    adapter: AdapterOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Also write every answer to this .json file, and the table to a .md beside it.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: what torch takes.")] = None,
) -> None:
    """Tell facts, then ask for them with nothing in the prompt: the state alone must know.

    Rows: facts-1, facts-4, facts-8, talk-256, talk-1024, unseen-words-1, unseen-words-4, unseen-attributes, updated,
    untold, labels, live-turns, perplexity.
    """
    chosen = _numbers(seeds)
    with load_engine(model, adapter=adapter, store=":memory:") as engine:
        import torch

        from deltamem_agents.evaluate import ROWS, evaluate_recall

        if threads is not None:
            torch.set_num_threads(threads)
        names = list(ROWS) if rows == "all" else [name.strip() for name in rows.split(",")]
        columns = [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
        with Progress(TextColumn("{task.description}"), *columns, console=err) as bar:
            tasks = {name: bar.add_task(name, total=None, start=False, visible=False) for name in names}

            def progress(name: str, done: int, total: int) -> None:
                if not done:
                    bar.start_task(tasks[name])
                bar.update(tasks[name], completed=done, total=total, visible=True)

            def finished(report: "RecallReport") -> None:
                if output is not None:
                    _write(report, output)

            report = evaluate_recall(
                engine,
                rows=names,
                episodes=episodes,
                seeds=chosen,
                data=data,
                text=text,
                progress=progress,
                finished=finished,
            )
    typer.echo(report.render())
    if output is not None:
        note(f"written: {output} and {output.with_suffix('.md')}")


def _numbers(seeds: str) -> list[int]:
    try:
        return [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise ConfigError(f"seeds are {seeds!r}, expected whole numbers with commas, as in 0,1,2") from error


def _write(report: "RecallReport", output: Path) -> None:
    """Writes what is known so far: a run that is stopped has left its finished rows."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        output.with_suffix(".md").write_text(report.render() + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the results cannot be written to {output}: {error}; choose another --output") from error
