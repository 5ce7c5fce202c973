"""Commands that a command prints work as they are printed."""

import re
import shlex

from typer.testing import CliRunner

from deltamem_agents import DeltaMemEngine
from deltamem_agents.cli import app
from tests.cli.conftest import Saved

NAME = "it's alice"


def test_the_undo_of_a_rollback(saved: Saved, engine: DeltaMemEngine) -> None:
    for text in ("One", "Two"):
        engine.generate([{"role": "user", "content": text}], session=NAME, max_new_tokens=2)
    head = engine.session(NAME).info.head
    result = saved.sessions("rollback", NAME, "--turns", "1", "--yes")
    printed = re.search("`(.*)` undoes this", " ".join(result.stderr.split()))
    assert printed is not None, result.output
    program, *arguments = shlex.split(printed[1])
    assert program == "deltamem"
    assert engine.session(NAME).info.head != head

    assert CliRunner().invoke(app, [*arguments, "--yes"]).exit_code == 0
    assert engine.session(NAME).info.head == head
