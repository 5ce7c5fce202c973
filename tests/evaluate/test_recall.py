"""The runner on a tiny model: all rows, and whose memory answers what."""

import json
import random
from pathlib import Path

import pytest
import torch.nn.functional as F
from torch import tensor
from typer.testing import CliRunner

from deltamem_agents import DeltaMemEngine
from deltamem_agents.cli import app
from deltamem_agents.errors import ConfigError, TrainingError
from deltamem_agents.evaluate import ROWS, RecallReport, evaluate_recall
from deltamem_agents.evaluate.asking import answers, ask, told_sessions
from deltamem_agents.evaluate.cases import Case, live_case, partners
from deltamem_agents.evaluate.judging import judge
from deltamem_agents.evaluate.perplexity import read_chunks, text_chunks
from deltamem_agents.evaluate.plain import asked_of_full_memories, plain_prompts
from deltamem_agents.train import EpisodeMix, Values, draw_episode
from deltamem_agents.train.data import TrainingData
from tests.chat import byte_tokenizer, chat_model

VALUES = Values(["harbor", "velvet", "saddle"])
EPISODES, SEEDS = 2, (0, 7)


def draw(count: int, **mix: object) -> list[Case]:
    rng = random.Random(3)
    return [Case(draw_episode(EpisodeMix.model_validate(mix), VALUES, rng, split="test")) for _ in range(count)]


@pytest.fixture(scope="module")
def finished() -> list[RecallReport]:
    return []


@pytest.fixture(scope="module")
def report(engine: DeltaMemEngine, finished: list[RecallReport]) -> RecallReport:
    return evaluate_recall(engine, episodes=EPISODES, seeds=SEEDS, finished=finished.append)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_measured(report: RecallReport, name: str) -> None:
    lines = [line for line in report.lines if line.row == name]
    assert len(lines) == len(ROWS[name].figures) + ROWS[name].later
    for line in lines:
        assert line.shares["own"].count == EPISODES * len(SEEDS)
        assert tuple(line.seeds) == SEEDS
        assert all(s.low <= s.value <= s.high for s in line.shares.values())
    questions = [q for q in report.questions if q.row == name]
    if ROWS[name].perplexity:
        assert len(report.readings) == EPISODES * len(SEEDS)
        return
    assert len(questions) == EPISODES * len(SEEDS) * max(1, len(ROWS[name].mixes))
    wanted = {"own", "swapped", "frozen", *(["before"] if ROWS[name].later else [])}
    wanted |= {f"window {n}" for n in ROWS[name].windows[:-1]}
    for question in questions:
        assert wanted - {"swapped"} <= question.answers.keys() <= wanted
        assert len(question.replies) == (10 if ROWS[name].later else 0)
    assert any("swapped" in q.answers for q in questions)


def test_it_leaves_no_sessions_and_tells_after_each_row(
    engine: DeltaMemEngine, report: RecallReport, finished: list[RecallReport]
) -> None:
    assert engine.sessions() == []
    found = [list(dict.fromkeys(line.row for line in part.lines)) for part in finished]
    assert found == [list(ROWS)[: number + 1] for number in range(len(ROWS))]
    assert finished[-1] == report


def test_the_report_says_where_and_how_much(engine: DeltaMemEngine, report: RecallReport) -> None:
    text = report.render()
    assert engine.fingerprint in text
    assert "IFEval" in text
    assert "1 fact, window 4" in text
    assert "label map, 3 labels × 4 examples" in text, "no more built-in topics are held out"
    assert all(figure.title in text for name, row in ROWS.items() for figure in row.figures if name != "labels")


def test_a_seed_gives_the_same_questions(engine: DeltaMemEngine, report: RecallReport) -> None:
    again = evaluate_recall(engine, rows=["facts-4"], episodes=EPISODES, seeds=SEEDS[1:])
    assert [q.question for q in again.questions] == [
        q.question for q in report.questions if (q.row, q.seed) == ("facts-4", SEEDS[1])
    ]


def test_everything_is_told_live_and_asking_changes_nothing(engine: DeltaMemEngine) -> None:
    cases = [*draw(2, facts=(1,)), *draw(1, facts=(3,), filler=(60,))]  # of different lengths
    with told_sessions(engine, cases) as names:
        before = [engine.state(name).tensor.clone() for name in names]
        ask(engine, names, cases)
        for name, case, state in zip(names, cases, before, strict=True):
            said = [entry for turn in engine.session(name).log() for entry in turn.entries]
            assert [e.role for e in said] == ["user", "assistant"] * len(case.episode.earlier)
            assert [e.digest for e in said[::2]] == [m.digest() for m in case.episode.earlier]
            assert engine.state(name).tensor.equal(state)


def test_each_question_is_answered_from_the_memory_it_names(engine: DeltaMemEngine) -> None:
    cases = draw(4, facts=(2,))
    found = answers(engine, cases, frozen={})
    others = partners([case.episode for case in cases])

    def alone(teller: Case | None, case: Case) -> str:
        question = [{"role": "user", "content": case.episode.question}]
        if teller is None:
            return engine.generate(question, max_new_tokens=24).reply.content
        for message in teller.episode.earlier:
            engine.generate([message], session="alone", recent_messages=0, max_new_tokens=12)
        turn = engine.generate(question, session="alone", memory="read", recent_messages=0, max_new_tokens=24)
        engine.forget("alone")
        return turn.reply.content

    for case, answer, other in zip(cases, found, others, strict=True):
        assert answer["own"] == alone(case, case)
        assert answer["frozen"] == alone(None, case)
        if other is not None:
            assert answer["swapped"] == alone(cases[other], case)
    assert any(a["own"] != a["frozen"] for a in found), "the memories do something"
    assert judge(found[0]["own"], cases[0].episode) == judge(alone(cases[0], cases[0]), cases[0].episode)


def test_with_a_window_recent_messages_stand_in_the_prompt_of_the_frozen_model_too(engine: DeltaMemEngine) -> None:
    cases = draw(2, facts=(3,))
    found = answers(engine, cases, frozen={}, windows=(0, 4))
    assert all({"own", "window 0", "frozen"} <= answer.keys() for answer in found)
    for case, answer in zip(cases, found, strict=True):
        question = {"role": "user", "content": case.episode.question}
        said = []
        for message in case.episode.earlier:
            turn = engine.generate([message], session="alone", recent_messages=4, max_new_tokens=12)
            said += [message, turn.reply]
        own = engine.generate([question], session="alone", memory="read", recent_messages=4, max_new_tokens=24)
        engine.forget("alone")
        assert answer["own"] == own.reply.content
        assert answer["frozen"] == engine.generate([*said[-4:], question], max_new_tokens=24).reply.content


def test_plain_prompts_go_to_full_memories_and_are_compared_with_the_frozen_model(engine: DeltaMemEngine) -> None:
    source = TrainingData(VALUES)
    for kind in ("talk", "questions"):
        prompts = plain_prompts(kind, source, random.Random(1), 500)  # type: ignore[arg-type]
        assert len(prompts) == len(set(prompts)) == 100
    prompts = [*prompts[:2], "Hello there."]
    cases = draw(2, facts=(2,))
    found = asked_of_full_memories(engine, "row", 3, cases, prompts, kind="talk", tokens=5)
    assert [a.question for a in found] == prompts
    for asked in found:
        frozen = engine.generate([{"role": "user", "content": asked.question}], max_new_tokens=5).reply.content
        assert asked.answers["frozen"] == frozen
        assert asked.verdicts["frozen"].right
        assert asked.verdicts["own"].right == (asked.answers["own"] == frozen)
    assert {a.answers["own"] for a in found} != {a.answers["frozen"] for a in found}


def _own_file(path: Path, *values: str, **change: object) -> Path:
    lines = [
        {"earlier": [{"role": "user", "content": f"My code word is {v}."}], "question": "What is my code word?",
         "answer": f"Your code word is {v}.", "values": [v], **change}
        for v in values
    ]  # fmt: skip
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_episodes_of_your_own_are_told_and_asked(engine: DeltaMemEngine, tmp_path: Path) -> None:
    file = _own_file(tmp_path / "own.jsonl", "Zwarkle", "Plimbo", "Quoxen")
    report = evaluate_recall(engine, rows=["file"], file=file, episodes=2, seeds=(0, 1))
    assert [(line.row, line.title, line.shares["own"].count) for line in report.lines] == [("file", "own.jsonl", 3)]
    assert [q.values for q in report.questions] == [("Zwarkle",), ("Plimbo",), ("Quoxen",)]
    with pytest.raises(ConfigError, match="rows are file, expected some of facts-1"):
        evaluate_recall(engine, rows=["file"])


def test_a_file_that_leaks_training_values_is_refused(engine: DeltaMemEngine, tmp_path: Path) -> None:
    file = _own_file(tmp_path / "own.jsonl", "Oslo", "Plimbo", "Quoxen")
    with pytest.raises(TrainingError, match=r"asks for 1 of 3 values that training has seen: 'Oslo'\. .*--seen"):
        evaluate_recall(engine, rows=["file"], file=file)
    report = evaluate_recall(engine, rows=["file"], file=file, seen=True)
    assert report.lines[0].title == "own.jsonl, values of training among them"
    trained, clean = _own_file(tmp_path / "train.jsonl", "plimbo"), _own_file(tmp_path / "b.jsonl", "Plimbo", "Quoxen")
    with pytest.raises(TrainingError, match="'Plimbo'"):
        evaluate_recall(engine, rows=["file"], file=clean, trained_on=[trained])
    with pytest.raises(TrainingError, match="holds 1 episode, expected 2 or more"):
        evaluate_recall(engine, rows=["file"], file=trained)
    window = [{"role": "user", "content": "Hello."}]
    shown = _own_file(tmp_path / "c.jsonl", "Plimbo", "Quoxen", window=window)
    with pytest.raises(TrainingError, match=r"episode 1 has a window .* move those messages to earlier"):
        evaluate_recall(engine, rows=["file"], file=shown)


def test_questions_on_the_way_are_really_asked(engine: DeltaMemEngine) -> None:
    cases = [live_case(VALUES, random.Random(seed)) for seed in range(2)]
    replies: dict[int, list[str]] = {}
    found = answers(engine, cases, frozen={}, note=lambda row, said: replies.update({row: list(said)}))
    assert set(found[0]) >= {"before", "own", "frozen"}
    for row, case in enumerate(cases):
        given = {number: e.reply for number, e in enumerate(case.later) if e.reply is not None}
        assert {number: replies[row][number] for number in given} == given
    assert any(answer["before"] != answer["own"] for answer in found), "what was asked has been absorbed"


def test_perplexity_of_the_empty_memory_is_the_backbone_s(engine: DeltaMemEngine, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The sea is wide and the wind is cold. " * 20, encoding="utf-8")
    chunks = text_chunks(engine, path)
    assert len(chunks) > 1
    readings = read_chunks(engine, draw(2, facts=(3,)), chunks, start=1, seed=5)
    bare = chat_model().detach()
    for reading, chunk in zip(readings, (chunks[1], chunks[2 % len(chunks)]), strict=True):
        logits = bare(input_ids=tensor([chunk])).logits[0, :-1]
        assert reading.empty == pytest.approx(F.cross_entropy(logits, tensor(chunk[1:])).item(), abs=1e-4)
        assert abs(reading.full - reading.empty) > 1e-4
        assert reading.seed == 5


def test_bad_input(engine: DeltaMemEngine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rows are facts-2, expected some of facts-1"):
        evaluate_recall(engine, rows=["facts-2"])
    with pytest.raises(ConfigError, match="memories are swapped"):
        evaluate_recall(engine, episodes=1)
    with pytest.raises(ConfigError, match="different ones"):
        evaluate_recall(engine, seeds=(1, 1))
    with pytest.raises(ConfigError, match="cannot be read"):
        evaluate_recall(engine, rows=["perplexity"], text=tmp_path / "nowhere.txt")
    (tmp_path / "short.txt").write_text("Too short.", encoding="utf-8")
    with pytest.raises(ConfigError, match="give a longer text"):
        evaluate_recall(engine, rows=["perplexity"], text=tmp_path / "short.txt")


def test_the_command(tmp_path: Path) -> None:
    model = chat_model()
    model.adapter.save_pretrained(tmp_path / "adapter")
    model.detach().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    where = ["--model", str(tmp_path / "model"), "--adapter", str(tmp_path / "adapter")]
    output = tmp_path / "out" / "recall.json"
    options = ["--rows", "facts-1,updated", "--episodes", "2", "--seeds", "1,2", "--output", str(output)]
    result = CliRunner().invoke(app, ["evaluate", "recall", *where, *options])
    assert result.exit_code == 0, result.output
    assert "| 1 fact | ≥ 98 % |" in result.stdout
    data = json.loads(output.read_text(encoding="utf-8"))
    assert [line["row"] for line in data["lines"]] == ["facts-1", "updated", "updated"]
    assert len(data["questions"]) == 8
    assert output.with_suffix(".md").read_text(encoding="utf-8") in result.stdout
    for bad, message in (("--rows", "rows are x"), ("--seeds", "seeds are 'x'")):
        result = CliRunner().invoke(app, ["evaluate", "recall", *where, bad, "x"])
        assert result.exit_code == 1
        assert message in result.stderr
