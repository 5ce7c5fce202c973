"""`deltamem bench`: how fast it all is on this machine."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and smaller cases.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Also say where the time goes.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random inputs.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Also write the results to this file.")] = None,
) -> None:
    """Measure the speed of the memory on this machine."""
    from deltamem_agents.bench import render, run_bench

    typer.echo(render(run_bench(quick=quick, profile=profile, seed=seed, output=output)))
