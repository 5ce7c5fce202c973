"""Load on a server, on a tiny model: what is looked at, and that each thing that can break is seen."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltamem_agents import ConfigError, DeltaMemEngine, Snapshot, StoreError
from deltamem_agents.bench.serving import Load, LoadReport, run_load
from deltamem_agents.bench.serving.clients import Figures, Said
from deltamem_agents.bench.serving.ledger import Ledger, States, compare_states
from deltamem_agents.cli import app
from deltamem_agents.serve import ServeConfig
from deltamem_agents.serve.service import Service
from tests.chat import byte_tokenizer, chat_model
from tests.engine.conftest import Start, model_for
from tests.engine.conftest import start as start
from tests.serve.conftest import MODEL, Running, serving

SMALL = Load(clients=3, sessions=6, seconds=2.0, tokens=6)


@pytest.fixture
def running() -> Iterator[Running]:
    engine = DeltaMemEngine(model_for(), byte_tokenizer(), store=":memory:")
    with serving(engine, Service(ServeConfig(model_id=MODEL), None)) as running:
        yield running


def test_a_sound_server_under_load(running: Running, tmp_path: Path) -> None:
    report = run_load(SMALL, url=running.url, output=tmp_path / "load")
    assert report.broken == []
    ledger = report.ledger
    assert ledger.kept == len(report.figures.first) >= SMALL.clients
    assert (ledger.unsure, ledger.lost, ledger.doubled, ledger.foreign, ledger.altered) == (0, 0, 0, 0, 0)
    assert report.states.own == len(report.states.to_replay) == len(running.engine.sessions(prefix="load "))
    assert min(report.states.apart) > 10 * max(report.states.to_replay)
    written = json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    assert written["broken"] == []
    assert written["ledger"]["kept"] == ledger.kept
    assert "everything held" in (tmp_path / "load.md").read_text(encoding="utf-8")


def test_clients_that_leave(running: Running) -> None:
    report = run_load(replace(SMALL, leaving=0.5, tokens=40), url=running.url)
    assert report.broken == []
    assert report.figures.left > 0
    assert report.ledger.kept > 0


def test_a_full_queue_refuses_and_nothing_is_lost(tmp_path: Path) -> None:
    engine = DeltaMemEngine(model_for(), byte_tokenizer(), store=":memory:")
    with serving(engine, Service(ServeConfig(model_id=MODEL, max_batch=1, max_queue=0), None)) as running:
        report = run_load(SMALL, url=running.url, output=tmp_path / "load")
    assert report.broken == []
    assert report.figures.refused.keys() == {"429"}
    assert f"{report.figures.refused['429']} by 429" in report.render()
    written = json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    assert written["figures"]["refused"] == report.figures.refused


@pytest.mark.slow
def test_a_server_that_is_killed(tmp_path: Path) -> None:
    model = chat_model()
    model.adapter.save_pretrained(tmp_path / "adapter")
    model.detach().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    options = f"--model {tmp_path / 'model'} --adapter {tmp_path / 'adapter'}"
    arguments = ["bench", "serve", "--clients", "2", "--sessions", "4", "--seconds", "5", "--kills", "1"]
    result = CliRunner().invoke(app, [*arguments, "--options", options, "--output", str(tmp_path / "load")])
    assert result.exit_code == 0, result.output
    assert "killed | 1 times" in result.output
    written = json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    assert len(written["down"]) == 1
    assert written["figures"]["refused"].keys() <= {"cut", "503"}
    assert written["memory"]


def spoken(engine: DeltaMemEngine, session: str, *texts: str) -> tuple[list[Said], list[Snapshot]]:
    """What was said in a session, and its line."""
    said = []
    for text in texts:
        turn = engine.generate([{"role": "user", "content": text}], session=session, max_new_tokens=3)
        said.append(Said(session, text, turn.reply.content))
    return said, engine.log(session)


def found(said: Sequence[Said], line: Sequence[Snapshot]) -> Ledger:
    ledger = Ledger()
    ledger.check(said, line)
    return ledger


def test_the_ledger_sees_what_is_wrong(start: Start) -> None:
    said, line = spoken(start(), "alice", "one", "two", "three")
    assert found(said, line) == Ledger(kept=3)
    assert found(said, line[:2]) == Ledger(kept=2, lost=1)
    assert found(said, [*line, line[0]]) == Ledger(kept=4, doubled=1, disordered=1)
    assert found(said[:2], line) == Ledger(kept=3, foreign=1)
    assert found([said[0], said[2], said[1]], line) == Ledger(kept=3, disordered=1)
    assert found([replace(said[0], reply="else"), *said[1:]], line) == Ledger(kept=3, altered=1)
    left = [*said[:2], replace(said[2], reply=None)]
    assert found(left, line) == Ledger(kept=3, unsure=1)
    assert found(left, line[:2]) == Ledger(kept=2)
    assert found(said, line[1:]) == Ledger(kept=2)  # the first turn was pruned


def test_a_state_that_knows_of_another_session_is_seen(start: Start) -> None:
    engine = start(store=":memory:")
    for session in ("alice", "bob"):
        spoken(engine, session, f"I am {session}", "hello")
    states = compare_states(engine, ["alice", "bob"])
    assert states.own == 2
    assert min(states.apart) > 10 * max(states.to_replay)
    alice, bob = (engine.store.snapshot(engine.info(session).head or "") for session in ("alice", "bob"))
    engine.rollback("alice", turns=1)
    engine.store.commit("alice", replace(alice, id="0" * 32, state=bob.state), expected=alice.parent)
    assert compare_states(engine, ["alice", "bob"]).own == 1
    assert {info.name for info in engine.sessions()} == {"alice", "bob"}


def report(**changed: object) -> LoadReport:
    whole = {
        "setup": {},
        "seconds": 400.0,
        "figures": Figures(first=[1.0], between=[0.1]),
        "ledger": Ledger(kept=4),
        "states": States([1e-6, 1e-6], [0.5, 0.5]),
        "memory": tuple((float(at), 100.0) for at in range(400)),
    }
    return LoadReport(**{**whole, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ledger": Ledger()}, "no turn was kept"),
        ({"ledger": Ledger(kept=1, lost=2)}, "2 replies are lost"),
        ({"ledger": Ledger(kept=1, doubled=1)}, "1 messages are there twice"),
        ({"ledger": Ledger(kept=1, foreign=1)}, "1 messages are in sessions where nobody said them"),
        ({"ledger": Ledger(kept=1, altered=1)}, "1 replies are not what clients read"),
        ({"ledger": Ledger(kept=1, disordered=1)}, "1 messages are out of order"),
        ({"states": States([1e-6, 0.1], [0.5, 0.5])}, "1 states are not their own replay's"),
        ({"states": States([1e-6, 1e-6], [1e-6, 1e-6])}, "would not show cross-talk"),
        ({"memory": tuple((float(at), 100.0 + at) for at in range(400))}, "memory grew 1.29 times"),
        ({"stopped": 1}, "ended with status 1"),
    ],
)
def test_what_should_hold_and_does_not_is_named(changed: dict[str, object], said: str) -> None:
    (broken,) = report(**changed).broken
    assert said in broken
    assert f"BROKEN: {broken}" in report(**changed).render()
    assert report().broken == []


def test_refusals_are_by_429_or_by_a_server_that_is_down() -> None:
    def seen(status: str, **changed: object) -> list[str]:
        figures = Figures(first=[1.0], between=[0.1])
        figures.refuse(status)
        return report(figures=figures, **changed).broken

    assert seen("429") == []
    assert len(seen("503")) == len(seen("cut")) == len(seen("500")) == 1
    assert seen("503", down=(4.0,)) == seen("cut", down=(4.0,)) == []
    assert len(seen("500", down=(4.0,))) == 1


def test_loads_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="a session of its own"):
        Load(clients=3, sessions=2)
    with pytest.raises(ConfigError, match=re.escape("leaving is 1.5")):
        Load(leaving=1.5)
    with pytest.raises(ConfigError, match="is not killed"):
        run_load(Load(kills=1), url="http://127.0.0.1:1")


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9"):
        run_load(Load(clients=1, sessions=1, seconds=0.1), url="http://127.0.0.1:9")
