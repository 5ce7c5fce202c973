"""`deltamem sessions forget-message` and `remembered`."""

import json

import pytest
from typer.testing import Result

from deltamem_agents import DeltaMemEngine
from tests.cli.conftest import Saved


@pytest.fixture
def told(saved: Saved) -> Saved:
    with saved.engine() as engine:
        for text in ("My dog is called Rex.", "My number is 5551234567.", "I live in Bern."):
            engine.absorb([{"role": "user", "content": text}], session="alice")
    return saved


def on_model(saved: Saved, *arguments: str, say: str = "") -> Result:
    return saved.sessions(*arguments, "--model", str(saved.model), "--adapter", str(saved.adapter), say=say)


def handle(saved: Saved, text: str) -> str:
    lines = saved.sessions("log", "alice", "--texts").stdout.splitlines()
    return next(line.split()[0] for line in lines if text in line)


def test_a_message_is_forgotten_and_the_rollback_that_undoes_it_is_told(told: Saved) -> None:
    result = on_model(told, "forget-message", "alice", handle(told, "5551234567"))
    assert result.exit_code == 0, result.output
    assert "alice: 2 turns, 2 messages." in result.stderr
    undo = result.stderr.rpartition("`deltamem sessions ")[2].partition("`")[0].split()
    assert told.sessions(*undo, "--yes").exit_code == 0
    assert "5551234567" in told.sessions("log", "alice", "--texts").stdout


def test_purging_asks_first_and_leaves_nothing(told: Saved) -> None:
    secret = handle(told, "5551234567")
    assert on_model(told, "forget-message", "alice", secret, "--purge", say="n\n").exit_code == 1
    assert "5551234567" in told.sessions("log", "alice", "--texts").stdout
    assert on_model(told, "forget-message", "alice", secret, "--purge", "--yes").exit_code == 0
    assert "5551234567" not in told.sessions("log", "alice", "--texts").stdout
    assert b"5551234567" not in told.store.read_bytes()


def test_a_message_that_is_not_there_is_an_error(told: Saved) -> None:
    result = on_model(told, "forget-message", "alice", "nowhere")
    assert result.exit_code == 1
    assert "'nowhere' is not on the line of session 'alice'" in result.stderr


def test_a_memory_is_asked(told: Saved, engine: DeltaMemEngine) -> None:
    result = on_model(told, "remembered", "alice", "--question", "Where do I live?", "--question", "Who?", "--json")
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)
    assert [answer["question"] for answer in answers] == ["Where do I live?", "Who?"]
    assert answers[0]["answer"] == engine.remembered("alice", ["Where do I live?"])[0].answer
    assert "What is my name?" in on_model(told, "remembered", "alice").stdout
    assert engine.info("alice").turns == 3
