"""`deltamem chat`: piped, and with somebody at the terminal."""

import io
import re
import shutil
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import deltamem_agents
from deltamem_agents import DeltaMemEngine, SQLStore
from deltamem_agents.cli import app
from deltamem_agents.cli.app import Commands, deltamem
from deltamem_agents.cli.chat import Conversation
from tests.cli.conftest import Saved


def replies(saved: Saved, tmp_path: Path, *messages: str, max_new_tokens: int) -> list[str]:
    """What the engine replies to the same messages, in a store of its own."""
    with DeltaMemEngine.from_pretrained(saved.model, adapter=saved.adapter, store=tmp_path / "other.db") as engine:
        return [
            engine.generate(
                [{"role": "user", "content": text}], session="alice", max_new_tokens=max_new_tokens
            ).reply.content
            for text in messages
        ]


def names(saved: Saved) -> list[str]:
    with SQLStore(saved.store) as store:
        return [info.name for info in store.sessions()]


def test_piped_messages_give_the_replies_and_nothing_else_on_stdout(saved: Saved, tmp_path: Path) -> None:
    result = saved.chat("--max-new-tokens", "12", say="My dog is called Rex.\n\n  What is he called?  \n")

    assert result.exit_code == 0, result.output
    expected = replies(saved, tmp_path, "My dog is called Rex.", "What is he called?", max_new_tokens=12)
    assert result.stdout == "".join(f"{reply}\n" for reply in expected)


def test_each_turn_has_a_status_line(saved: Saved) -> None:
    result = saved.chat("--max-new-tokens", "4", say="One\nTwo\n")

    first, second = result.stderr.splitlines()
    assert "prompt tokens (0 cached)" in first
    assert "of state" not in first
    assert first.endswith("cut at --max-new-tokens")
    assert "(0 cached)" not in second


def test_a_session_goes_on_in_the_next_process(saved: Saved) -> None:
    saved.chat("--max-new-tokens", "2", say="One\n")
    saved.chat("--max-new-tokens", "2", say="Two\n")

    with SQLStore(saved.store) as store:
        info = store.session("alice")
    assert info is not None
    assert (info.turns, info.messages) == (2, 4)


def test_quit_leaves_the_rest_unsaid(saved: Saved) -> None:
    result = saved.chat("--max-new-tokens", "2", say="One\n/quit\nTwo\n")

    assert result.exit_code == 0
    with SQLStore(saved.store) as store:
        info = store.session("alice")
    assert info is not None
    assert info.turns == 1


@pytest.mark.parametrize(("answer", "left"), [("y", []), ("yes", []), ("no", ["alice"]), ("", ["alice"])])
def test_forget_asks(saved: Saved, answer: str, left: list[str]) -> None:
    result = saved.chat("--max-new-tokens", "2", say=f"One\n/forget\n{answer}\n")

    assert result.exit_code == 0, result.output
    assert "Delete session 'alice' (1 turn) for good? [y/N]" in result.stderr
    assert names(saved) == left


def test_a_session_without_turns_has_nothing_to_forget(saved: Saved) -> None:
    result = saved.chat(say="/forget\n")

    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing to forget" in result.stderr


@pytest.mark.parametrize("name", ["", " alice", "al\nice", "a" * 201])
def test_a_bad_session_name_is_an_error_before_anything_is_loaded(name: str) -> None:
    result = CliRunner().invoke(app, ["chat", "--session", name, "--model", "no/such/model"])

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert "is not a session name" in result.stderr


def test_a_turn_that_fails_ends_a_pipe(saved: Saved) -> None:
    result = saved.chat("--max-new-tokens", "2", say=f"{'long ' * 1000}\nOne\n")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "tokens" in result.stderr
    assert names(saved) == []


def test_bytes_that_are_no_text_are_an_error(saved: Saved) -> None:
    result = saved.chat(say=b"\xff\xfe\n")

    assert result.exit_code == 1
    assert "pipe it in as UTF-8" in result.stderr


def test_no_adapter_for_this_model_is_an_error(saved: Saved) -> None:
    result = CliRunner().invoke(app, ["chat", "--session", "alice", "--model", str(saved.model)])

    assert result.exit_code == 1
    assert "no adapter ships" in result.stderr
    assert "--adapter" in result.stderr


@pytest.mark.parametrize("word", ["/forgett", "/Help", "/", "/quit now", "/exit"])
def test_an_unknown_command_is_not_said(saved: Saved, word: str) -> None:
    result = saved.chat("--max-new-tokens", "2", say=f"One\n{word}\n")

    assert result.exit_code == 1
    assert f"{word.split()[0]} is no command, and was not said: expected /help, /forget, /quit" in result.stderr
    with SQLStore(saved.store) as store:
        assert [info.messages for info in store.sessions()] == [2]


def test_help_lists_the_commands(saved: Saved) -> None:
    result = saved.chat(say="/help\n")

    assert (result.exit_code, result.stdout) == (0, "")
    assert all(command in result.stderr for command in ("/help", "/forget", "/quit", "Ctrl-C"))
    assert names(saved) == []


@pytest.mark.parametrize("said", ["//help", "/etc/hosts is a file", "/usr/bin"])
def test_what_begins_with_a_slash_can_be_said(saved: Saved, said: str) -> None:
    assert saved.chat("--max-new-tokens", "2", say=f"{said}\n").exit_code == 0
    with SQLStore(saved.store) as store:
        text = store.log("alice")[0].entries[0].text or ""
    assert f'"content":"{said.replace("//", "/")}"' in text


def test_how_a_model_is_loaded_can_be_said(saved: Saved) -> None:
    options = ("--device", "cpu", "--dtype", "bfloat16", "--model-kwargs", '{"attn_implementation": "eager"}')
    assert saved.chat("--max-new-tokens", "2", *options, say="One\n").exit_code == 0
    bad = saved.chat("--dtype", "float17", say="One\n")
    assert (bad.exit_code, bad.stderr.count("Traceback")) == (1, 0)
    for broken in ("{", "[1]"):
        result = saved.chat("--model-kwargs", broken, say="One\n")
        assert (result.exit_code, "--model-kwargs is" in result.stderr) == (1, True)


def test_the_folder_of_a_training_run_stands_for_its_adapter(saved: Saved, tmp_path: Path) -> None:
    shutil.copytree(saved.adapter, tmp_path / "mine" / "adapter")
    where = ["--model", str(saved.model), "--adapter", str(tmp_path / "mine"), "--store", str(saved.store)]
    result = CliRunner().invoke(app, ["chat", "--session", "alice", "--max-new-tokens", "2", *where], input="One\n")
    assert result.exit_code == 0, result.output


def test_a_model_folder_that_is_not_there() -> None:
    result = CliRunner().invoke(app, ["chat", "--session", "alice", "--model", "./nope"])
    assert result.exit_code == 1
    assert "there is no folder ./nope" in result.stderr


def test_a_store_in_a_folder_that_is_not_there(saved: Saved, tmp_path: Path) -> None:
    where = ["--model", str(saved.model), "--adapter", str(saved.adapter), "--store", str(tmp_path / "no" / "s.db")]
    result = CliRunner().invoke(app, ["chat", "--session", "alice", *where], input="One\n")
    assert result.exit_code == 1
    assert f"there is no folder {tmp_path / 'no'}; make it" in result.stderr


def test_a_reply_longer_than_the_context_is_blamed_rightly(saved: Saved) -> None:
    result = saved.chat("--max-new-tokens", "100000", say="One\n")
    assert result.exit_code == 1
    assert "max_new_tokens is 100000, and the model's context is 2048 tokens" in result.stderr


def test_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout.strip()) == (0, deltamem_agents.__version__)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", deltamem_agents.__version__)


def test_a_missing_extra_is_named() -> None:
    command = typer.Typer(cls=Commands)
    command.callback()(deltamem)

    @command.command()
    def lacking() -> None:
        raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")

    result = CliRunner().invoke(command, ["lacking"])
    assert result.exit_code == 1
    assert "pip install 'deltamem-agents[train]'" in result.stderr


def test_a_bad_option_is_a_usage_error(saved: Saved) -> None:
    assert saved.chat("--max-new-tokens", "0").exit_code == 2


class Interrupting(io.StringIO):
    """A stdout at which somebody presses Ctrl-C when the first reply begins."""

    def __init__(self) -> None:
        super().__init__()
        self.pressed = False

    def write(self, text: str) -> int:
        if text not in ("", "> ") and not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt
        return super().write(text)


def test_ctrl_c_cancels_the_turn_and_the_session_is_as_it_was(
    engine: DeltaMemEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.generate([{"role": "user", "content": "One"}], session="alice", max_new_tokens=2)
    before = engine.store.session("alice")
    stdout = Interrupting()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Two\n"))
    monkeypatch.setattr(sys, "stdout", stdout)

    Conversation(engine, "alice", max_new_tokens=1500, interactive=True).run()

    assert stdout.pressed
    assert "Cancelled: the session is as it was." in capsys.readouterr().err
    assert engine.store.session("alice") == before


def test_somebody_at_the_terminal_can_go_on_after_an_error(
    engine: DeltaMemEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{'long ' * 1000}\nOne\n"))

    Conversation(engine, "alice", max_new_tokens=2, interactive=True).run()

    said = capsys.readouterr().err
    assert "Session alice: new." in said
    assert "Error: new message 0" in said
    info = engine.store.session("alice")
    assert info is not None
    assert info.turns == 1
