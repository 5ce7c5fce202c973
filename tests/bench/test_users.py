"""Many users at once, each with a secret, on a tiny model: what is compared, and that states are told apart."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltamem_agents.bench.concurrency import run_users
from deltamem_agents.cli import app
from tests.chat import byte_tokenizer, chat_backbone

USERS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("users") / "tiny"
    chat_backbone().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("asynchronous", "kind"), [(False, "threads"), (True, "tasks")])
def test_throughput_and_states(folder: Path, asynchronous: bool, kind: str) -> None:
    report = run_users(users=USERS, asynchronous=asynchronous, tokens=4, repeats=2, model=folder)
    speed, states = report.rows
    assert speed.name == f"{USERS} {kind} on {USERS} sessions ÷ one by one, tokens/s"
    assert len(speed.samples) == 2
    assert (states.samples, states.unit, states.hit) == ((float(USERS),), f"of {USERS}", True)


def test_tasks_are_of_users() -> None:
    result = CliRunner().invoke(app, ["bench", "concurrency", "--async"])
    assert result.exit_code != 0
    assert "--users" in re.sub(r"\x1b\[[0-9;]*m", "", result.output)
