"""What the README shows runs as it stands, on the bundled model."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples keep their memory beside them
    exec(compile(EXAMPLES[number], f"example {number}", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "memory.db").exists()


def test_commands_that_are_named_exist() -> None:
    from deltamem_agents.cli import app

    named = set(re.findall(r"\bdeltamem ([a-z]+)", README.read_text(encoding="utf-8")))
    groups = {group.name for group in app.registered_groups}
    commands = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback is not None}
    assert named <= groups | commands
