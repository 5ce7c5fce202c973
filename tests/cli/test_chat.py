"""`deltamem chat`: piped, and with somebody at the terminal."""

import io
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltamem_agents import DeltaMemEngine, SQLStore
from deltamem_agents.cli import app
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
    assert " of state · " in first
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
