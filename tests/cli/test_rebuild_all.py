"""`deltamem sessions rebuild --all`: all memories under another adapter, in a run that may stop and go on."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deltamem_agents import DeltaMemAdapter, DeltaMemEngine
from deltamem_agents.cli import app
from tests.builders import randomised
from tests.cli.conftest import Saved

NAMES = [f"user-{number}" for number in range(5)]


@pytest.fixture
def other(saved: Saved, tmp_path: Path) -> Saved:
    """The same store, for another adapter."""
    randomised(DeltaMemAdapter.from_pretrained(saved.adapter), seed=7).save_pretrained(tmp_path / "other")
    return Saved(saved.model, tmp_path / "other", saved.store)


@pytest.fixture
def told(engine: DeltaMemEngine) -> DeltaMemEngine:
    for number, name in enumerate(NAMES):
        for turn in range(1 + number % 2):
            said = {"role": "user", "content": f"My number is {number}, and this is turn {turn}."}
            engine.generate([said], session=name, max_new_tokens=4)
    return engine


def rebuild(saved: Saved, *arguments: str) -> Result:
    where = ["--model", str(saved.model), "--adapter", str(saved.adapter), "--store", str(saved.store)]
    return CliRunner().invoke(app, ["sessions", "rebuild", *arguments, *where])


def test_rebuilds_what_is_not_the_adapters_yet_and_only_once(told: DeltaMemEngine, other: Saved) -> None:
    with other.engine() as engine:
        engine.session(NAMES[1]).rebuild()  # as a run that was stopped has done
        before = engine.info(NAMES[1]).head

        first, again = rebuild(other, "--all"), rebuild(other, "--all")

        assert first.exit_code == again.exit_code == 0, first.output
        assert "4 sessions, 5 turns" in first.stderr
        assert "0 sessions, 0 turns" in again.stderr
        assert engine.info(NAMES[1]).head == before
        assert {info.fingerprint for info in engine.sessions()} == {engine.fingerprint} != {told.fingerprint}
        assert [engine.info(name).turns for name in NAMES] == [1, 2, 1, 2, 1]


def test_names_what_cannot_be_rebuilt_and_does_the_rest(saved: Saved, other: Saved, told: DeltaMemEngine) -> None:
    with DeltaMemEngine.from_pretrained(
        saved.model, adapter=saved.adapter, store=saved.store, transcript="none", recent_messages=0
    ) as without_texts:
        without_texts.absorb([{"role": "user", "content": "Don't keep this."}], session="secret")

    result = rebuild(other, "--all")

    assert result.exit_code == 1
    assert "'secret' cannot be rebuilt" in result.stderr
    assert "5 sessions, 7 turns" in result.stderr
    assert [info.name for info in told.sessions() if info.fingerprint == told.fingerprint] == ["secret"]


def test_only_those_of_a_prefix(told: DeltaMemEngine, other: Saved) -> None:
    assert "1 session, 2 turns" in rebuild(other, "--all", "--prefix", NAMES[3]).stderr


@pytest.mark.parametrize("arguments", [[], ["user-1", "--all"]])
def test_one_or_all(saved: Saved, arguments: list[str]) -> None:
    result = rebuild(saved, *arguments)

    assert result.exit_code == 2
    assert "either" in result.stderr
