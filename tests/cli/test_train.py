import io
import json
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from deltamem_agents.adapter import DeltaMemAdapter
from deltamem_agents.cli import app
from deltamem_agents.cli.progress import Shown, StepLine, duration
from tests.chat import byte_tokenizer, chat_backbone
from tests.train.test_chats import written


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    chat_backbone().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def test_the_example_trains_somebody_elses_model(model: str, tmp_path: Path) -> None:
    small = ["--set", "rows=2", "--set", "evaluate_episodes=2", "--set", "align=0", "--threads", "1"]
    command = ["train", "example", "--model", model, "--output", str(tmp_path / "run"), *small]
    first = CliRunner().invoke(app, [*command, "--until", "2"])
    assert first.exit_code == 0, first.output
    assert str(tmp_path / "run" / "adapter") in first.stdout
    assert DeltaMemAdapter.from_pretrained(tmp_path / "run" / "adapter").config.rank == 8
    assert "step 2/2  stage 1  loss" in first.stderr
    assert "own memory" in first.stderr
    second = CliRunner().invoke(app, [*command, "--until", "3"])
    assert second.exit_code == 0, second.output
    assert "going on from step 2" in second.stderr
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3


def command(model: str, output: Path, *more: str) -> list[str]:
    small = ["--set", "rows=2", "--set", "evaluate_episodes=2", "--set", "evaluate_every=2", "--threads", "1"]
    return ["train", "example", "--model", model, "--output", str(output), *small, *more]


def signals(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Sends them to this process once a step has been done."""
    left, after = list(numbers), StepLine.after

    def kill(line: StepLine, record: dict[str, float], *, total: int) -> str:
        while left:
            os.kill(os.getpid(), left.pop(0))
        return after(line, record, total=total)

    monkeypatch.setattr(StepLine, "after", kill)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_step_under_way_end_and_keeps_it(
    number: int, code: int, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    signals(monkeypatch, number)
    trained = command(model, tmp_path, "--set", "align=0")
    stopped = CliRunner().invoke(app, trained)
    assert stopped.exit_code == code, stopped.output
    assert "stopped at step 2; the same command goes on from there" in stopped.stderr
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    again = CliRunner().invoke(app, [*trained, "--until", "3"])
    assert again.exit_code == 0, again.output
    assert f"going on from step 2 in {tmp_path}" in again.stderr


def test_a_second_signal_ends_at_once_and_what_is_lost_is_said(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals(monkeypatch, signal.SIGTERM, signal.SIGINT)
    trained = command(model, tmp_path, "--set", "align=0")
    stopped = CliRunner().invoke(app, trained)
    assert stopped.exit_code == 130, stopped.output
    assert "stopped in the middle of a step: the same command begins anew" in stopped.stderr
    again = CliRunner().invoke(app, [*trained, "--until", "1"])
    assert again.exit_code == 0, again.output
    assert f"{tmp_path} has a log but no checkpoint: beginning at step 1" in again.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_heads_are_fitted_ends_at_once(
    number: int, code: int, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(_: Shown, line: str, *, keep: bool = False) -> None:
        assert "fitting" in line, keep
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Shown, "show", kill)
    stopped = CliRunner().invoke(app, command(model, tmp_path))
    assert stopped.exit_code == code, stopped.output
    assert "stopped before the first step: the same command begins anew" in stopped.stderr
    assert not list(tmp_path.iterdir())


def test_an_error_is_one_message(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", str(tmp_path / "none.yaml"), "--output", str(tmp_path)])
    assert result.exit_code == 1
    assert "no recipe at" in result.stderr
    nothing = CliRunner().invoke(app, ["train"])
    assert nothing.exit_code == 2
    assert "name one" in nothing.stderr


def test_fields_are_listed_without_a_recipe() -> None:
    result = CliRunner().invoke(app, ["train", "--fields"])
    assert result.exit_code == 0
    assert "gradient_checkpointing: true or false = false" in result.stdout


def test_a_dry_run_says_what_would_be_and_writes_nothing(model: str, tmp_path: Path) -> None:
    chats = written(tmp_path / "chats.jsonl", 5)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {model}\nstages: [{{steps: 3, data_share: 0.5}}]\ngradient_checkpointing: true\n"
        f"data: [{{format: chats, path: {chats.name}, window: 1}}]\n"
    )
    result = CliRunner().invoke(app, ["train", str(recipe), "--output", str(tmp_path / "run"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "stage 1: 3 steps of 16 answers" in result.stdout
    assert "chats.jsonl: 5 episodes in 5 of 5 conversations; 2 held out" in result.stdout
    assert "computed for" in result.stdout
    assert "kept for backward, with gradient_checkpointing" in result.stdout
    assert not (tmp_path / "run").exists()
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


def test_the_largest_numbers_fit_80_columns_and_the_step_comes_first() -> None:
    times = iter([0.0, 2.0])
    line = StepLine(stages=3, clock=lambda: next(times))
    record = {"step": 10_000, "stage": 2, "loss": 10.12345, "recall": 1.0, "recall_swapped": 1.0}
    said = line.after(record, total=14_000)
    assert said == "step 10000/14000  stage 3  loss 10.123  recall 100%, swapped 100%  2:13:20 left"
    assert len(said) <= 80


def test_evaluations_are_remembered_and_the_end_has_no_time_left() -> None:
    times = iter([0.0, 1.0, 3.0, 6.0])
    line = StepLine(stages=1, clock=lambda: next(times))
    assert line.after({"step": 1, "stage": 0, "loss": 2.0}, total=3) == "step 1/3  loss 2.000  0:02 left"
    said = line.after({"step": 2, "stage": 0, "loss": 1.0, "recall": 0.5, "recall_swapped": 0.0}, total=3)
    assert said == "step 2/3  loss 1.000  recall 50%, swapped 0%  0:02 left"
    assert line.after({"step": 3, "stage": 0, "loss": 0.5}, total=3) == "step 3/3  loss 0.500  recall 50%, swapped 0%"
    assert [duration(s) for s in (0, 59.6, 3600)] == ["0:00", "1:00", "1:00:00"]


def test_without_a_terminal_there_is_a_line_at_evaluations_and_once_a_minute() -> None:
    times = iter([0.0, 30.0, 61.0, 61.0, 90.0, 120.0, 151.0, 151.0])
    file = io.StringIO()
    with Shown(Console(file=file), clock=lambda: next(times)) as shown:
        shown.show("a")  # 30 s
        shown.show("b")  # 61 s
        shown.show("c", keep=True)  # 90 s, an evaluation
        shown.show("d")
        shown.show("e")
    assert file.getvalue().split() == ["b", "c", "e"]


def test_a_terminal_keeps_the_lines_of_evaluations_only() -> None:
    file = io.StringIO()
    with Shown(Console(file=file, force_terminal=True, width=20)) as shown:
        shown.show("step 1/3  a line that is too long for it")
        shown.show("step 2/3", keep=True)
        shown.show("step 3/3")
    printed = file.getvalue()
    assert "too long" not in printed
    assert printed.count("step 2/3\n") >= 1
    assert json.dumps(printed).count("step 3/3") >= 1
