"""The commands of `deltamem`, and the one place where their errors are shown."""

from importlib.metadata import version
from typing import Annotated

import typer
from typer.core import TyperGroup

from deltamem_agents.cli import bench, evaluate, sessions
from deltamem_agents.cli.chat import chat
from deltamem_agents.cli.console import show_error
from deltamem_agents.cli.demo import demo
from deltamem_agents.cli.doctor import doctor
from deltamem_agents.cli.pull import pull
from deltamem_agents.cli.serve import serve
from deltamem_agents.cli.train import train
from deltamem_agents.errors import ConfigError, DeltaMemError

EXTRAS = {
    "langchain": "langchain",
    "langchain_core": "langchain",
    "langgraph": "langchain",
    "llama_index": "llama-index",
    "tensorboard": "train",
    "yaml": "train",
    "bm25s": "evaluate",
    "nltk": "evaluate",
    "fastapi": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "matplotlib": "notebooks",
}
"""Packages that commands need, and the extra that brings each."""


class Commands(TyperGroup):
    """Commands whose own errors end in one red message and exit code 1, or in a traceback with `--debug`."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except DeltaMemError as error:
            if ctx.params["debug"]:
                raise
            show_error(error)
            raise typer.Exit(1) from error
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in EXTRAS or ctx.params["debug"]:
                raise
            extra = f"deltamem-agents[{EXTRAS[package]}]"
            show_error(ConfigError(f"{package} is not installed, and this needs it: pip install '{extra}'"))
            raise typer.Exit(1) from error


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _show_version(on: bool) -> None:
    if on:
        typer.echo(version("deltamem-agents"))
        raise typer.Exit


@app.callback()
def deltamem(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Online memory for agents on frozen Hugging Face models."""


app.command()(chat)
app.command()(serve)
app.add_typer(sessions.app, name="sessions")
app.command()(pull)
app.command()(demo)
app.command()(doctor)
app.add_typer(bench.app, name="bench")
app.command()(train)
app.add_typer(evaluate.app, name="evaluate")
