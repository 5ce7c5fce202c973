"""A whole run on a tiny model: every condition, its controls, and going on after a stop."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltamem_agents import DeltaMemEngine
from deltamem_agents.cli import app
from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.suites import CONDITIONS, SUITES, Cell, Record, Suite, evaluate_suite, limited, load_suite
from deltamem_agents.evaluate.suites.memories import Memories
from tests.chat import byte_tokenizer, chat_model
from tests.evaluate.suites.conftest import DATA


def by_cell(records: tuple[Record, ...]) -> dict[Cell, dict[str, Record]]:
    found: dict[Cell, dict[str, Record]] = {}
    for record in records:
        found.setdefault(record.cell, {})[record.question] = record
    return found


def test_every_condition_on_every_question(engine: DeltaMemEngine, locomo: Suite) -> None:
    report = evaluate_suite(engine, locomo, budgets=(60, 120))
    found = by_cell(report.records)
    assert len(found) == 7 + 2 * 7
    ids = {question.id for talk in locomo.conversations for question in talk.questions}
    assert all(set(records) == ids for records in found.values())
    for cell, records in found.items():
        visible = [record.visible_tokens for record in records.values()]
        assert max(visible) <= (cell.budget or (10_000 if cell.condition in ("full", "evidence") else 0))
    assert any(record.visible_tokens for record in found[Cell("bm25", 60)].values())
    full = found[Cell("full", None)]
    evidence = found[Cell("evidence", None)]
    for records in (full, evidence):
        assert all(record.evidence_share == 1 for record in records.values())
    assert all(evidence[id].visible_tokens < full[id].visible_tokens for id in full)
    assert full["conv-1-3"].kept_bytes == sum(len(m.content.encode()) for m in locomo.conversations[0].messages)
    state = found[Cell("state", None)]["conv-1-3"]
    assert state.prompt_tokens == found[Cell("none", None)]["conv-1-3"].prompt_tokens
    assert state.kept_bytes == len(engine.state(Memories(engine, prefix="evaluate-locomo").session(
        locomo.conversations[0])).to_bytes(fingerprint=engine.fingerprint))  # fmt: skip
    assert report.render().count("\n| ") > 30
    assert json.loads(json.dumps(report.as_dict()))["lines"][0]["condition"] == "none"


def test_controls_read_other_memories(engine: DeltaMemEngine, locomo: Suite) -> None:
    one, other = locomo.conversations
    found = by_cell(evaluate_suite(engine, locomo, budgets=(60,)).records)
    # the first talk's question of the second talk's memory is what the second talk's own is to it
    mixed = Suite(
        name="locomo",
        title="the second talk, asked the first one's questions",
        conversations=(type(other)(name="mixed", parts=other.parts, questions=one.questions),),
        score=locomo.score,
        answer_tokens=locomo.answer_tokens,
    )
    theirs = by_cell(evaluate_suite(engine, mixed, conditions=["state"]).records)[Cell("state", None)]
    for question in one.questions:
        nats = {
            name: found[Cell(name, None)][question.id].nats for name in ("none", "state", "zero", "swapped", "shuffled")
        }
        assert nats["swapped"] == pytest.approx(theirs[question.id].nats, abs=1e-5)
        assert len({round(value, 4) for value in nats.values()}) == 5, "all five differ"
    for pair in (("state+window", "swapped+window"), ("state+bm25", "swapped+bm25")):
        own, swapped = (found[Cell(name, 60)]["conv-1-0"] for name in pair)
        assert own.visible_tokens == swapped.visible_tokens
        assert own.prompt_tokens == swapped.prompt_tokens
        assert abs(own.nats - swapped.nats) > 1e-4


def test_a_stopped_run_goes_on(tmp_path: Path, locomo: Suite) -> None:
    class Stopped(Exception):
        pass

    def stop(name: str, done: int, total: int) -> None:
        if done == 14:
            raise Stopped

    def run(output: Path, **options: object) -> tuple[Record, ...]:
        store = output / "memory.db"
        output.mkdir(exist_ok=True)
        with DeltaMemEngine(chat_model(), byte_tokenizer(), store=store, recent_messages=0) as engine:
            return evaluate_suite(engine, locomo, budgets=(60,), output=output, **options).records  # type: ignore[arg-type]

    with pytest.raises(Stopped):
        run(tmp_path / "a", progress=stop)
    path = tmp_path / "a" / "records.jsonl"
    half = path.read_text(encoding="utf-8")
    path.write_text(half + '{"conversation": "conv-1", "ques', encoding="utf-8")  # killed while it wrote
    records = run(tmp_path / "a")
    assert path.read_text(encoding="utf-8").startswith(half)
    whole = run(tmp_path / "b")
    assert len(records) == len(whole) == 7 * 14

    def plain(found: tuple[Record, ...]) -> dict[tuple[str, Cell], tuple[object, ...]]:
        return {(r.question, r.cell): (r.answer, round(r.nats, 4), r.ranked_first, r.visible_tokens) for r in found}

    assert plain(records) == plain(whole)
    calls = []
    run(tmp_path / "a", progress=lambda name, done, total: calls.append(done))
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1 + 7 * 14, "nothing is asked twice"
    with pytest.raises(ConfigError, match=r"another run \(seed was 0 and is 1\): go on with its settings"):
        run(tmp_path / "a", seed=1)
    locomo = limited(locomo, questions=1)
    with pytest.raises(ConfigError, match=r"another run \(data was"):
        run(tmp_path / "a")


def test_where_no_answers_are_published_the_full_history_s_stand_in(engine: DeltaMemEngine, tmp_path: Path) -> None:
    suite = load_suite("memorybank", DATA)
    found = by_cell(evaluate_suite(engine, suite, conditions=["none", "full"], output=tmp_path).records)
    texts = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    references = {text["name"].removeprefix("reference "): text["text"] for text in texts}
    full = found[Cell("full", None)]
    assert {id: record.answer.strip() or "-" for id, record in full.items()} == references
    assert full.keys() == references.keys() == {"Pia-0", "Pia-1", "Rolf-0"}


def test_bad_input(engine: DeltaMemEngine, locomo: Suite) -> None:
    with pytest.raises(ConfigError, match="conditions are oracle, expected some of none"):
        evaluate_suite(engine, locomo, conditions=["oracle"])
    with pytest.raises(ConfigError, match=r"budgets are \[0\]"):
        evaluate_suite(engine, locomo, budgets=(0,))
    with pytest.raises(ConfigError, match=r"expected some of 1 to 682 tokens"):
        evaluate_suite(engine, locomo, budgets=(1024,))
    with pytest.raises(ConfigError, match="1 conversation, expected 2 or more for swapped"):
        evaluate_suite(engine, limited(locomo, conversations=1), conditions=["swapped"])


def test_the_command(tmp_path: Path) -> None:
    model = chat_model()
    model.adapter.save_pretrained(tmp_path / "adapter")
    model.detach().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    where = ["--model", str(tmp_path / "model"), "--adapter", str(tmp_path / "adapter"), "--data", str(DATA)]
    limits = ["--conditions", "none,full,state,swapped", "--questions", "1"]
    output = tmp_path / "out" / "xquad"
    command = ["evaluate", "xquad", *where, *limits, "--output", str(output)]
    for _ in range(2):  # the second time there is nothing left to do
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "at most 1 questions of each, chosen with seed 0" in result.stdout
        assert (output / "report.md").read_text(encoding="utf-8") in result.stdout
    data = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert [line["condition"] for line in data["lines"]] == ["none", "full", "state", "swapped"]
    for bad, message in ((["--budgets", "x"], "budgets are 'x'"), (["--data", str(tmp_path)], "get xquad.en.json")):
        result = CliRunner().invoke(app, ["evaluate", "xquad", *where, *bad])
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())


def test_every_suite_has_its_command() -> None:
    shown = CliRunner().invoke(app, ["evaluate", "--help"]).stdout
    assert all(f" {name} " in shown for name in (*SUITES, "recall"))
    about = " ".join(CliRunner().invoke(app, ["evaluate", "babi", "--help"]).stdout.split())
    assert all(name in about for name in CONDITIONS)
