"""`deltamem pull`: the bundled model, ahead of time."""

import typer

from deltamem_agents.backbone.bundled import bundled_path


def pull() -> None:
    """Fetch and convert the bundled model, unless that is done, and print where it is."""
    typer.echo(bundled_path())
