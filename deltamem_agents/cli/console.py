"""Where the command line writes: what was asked for on stdout, everything about it on stderr."""

from rich.console import Console
from rich.text import Text

from deltamem_agents.errors import DeltaMemError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def count(number: int, noun: str) -> str:
    """A number of things: "1 turn", "2 turns"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def show_error(error: DeltaMemError) -> None:
    """Shows an error as one red message on stderr."""
    err.print(Text(f"Error: {error}", style="red"), soft_wrap=True)


def note(text: str) -> None:
    """Shows a dimmed line on stderr."""
    err.print(Text(text, style="dim"), soft_wrap=True)
