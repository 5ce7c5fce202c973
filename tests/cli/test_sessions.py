"""`deltamem sessions`: what is in a store, seen, mostly without a model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltamem_agents import DeltaMemAdapter, DeltaMemEngine, DeltaMemError, SQLStore
from deltamem_agents.cli import app
from deltamem_agents.cli.stored import store_option
from tests.builders import randomised
from tests.cli.conftest import Saved, ids_of, row


def cells(output: str, first: str) -> list[str]:
    """The words of the row that begins with `first`."""
    return next(line.split() for line in output.splitlines() if line.split()[:1] == [first])


def test_lists_sessions_with_their_sizes(filled: Saved) -> None:
    result = filled.sessions("list")

    assert result.exit_code == 0, result.output
    assert cells(result.stdout, "alice")[:3] == ["alice", "3", "5"]
    assert cells(result.stdout, "bob")[:3] == ["bob", "1", "2"]
    with SQLStore(filled.store) as store:
        infos = store.sessions()
    assert f"{infos[0].state_bytes:,} bytes" in result.stdout or "kB" in result.stdout
    assert f"{infos[0].updated_at.astimezone():%Y-%m-%d %H:%M:%S}" in result.stdout


def test_an_empty_store_lists_nothing_and_says_how_to_begin(saved: Saved) -> None:
    SQLStore(saved.store).close()

    result = saved.sessions("list")

    assert (result.exit_code, result.stdout) == (0, "")
    assert f"No sessions in {saved.store}: `deltamem chat --session NAME` starts one." in result.stderr
    assert "Another store: --store FILE." in result.stderr


def test_an_empty_default_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)

    result = CliRunner().invoke(app, ["sessions", "list"])

    assert result.exit_code == 0, result.output
    (found,) = tmp_path.rglob("sessions.db")
    assert f"No sessions in ~/{found.relative_to(tmp_path)}: " in result.stderr


def test_lists_pages_by_name(saved: Saved, engine: DeltaMemEngine) -> None:
    for name in ("ada", "bo b", "bob", "cleo"):
        engine.absorb([{"role": "user", "content": "Hello."}], session=name)

    first, last = saved.sessions("list", "--limit", "2"), saved.sessions("list", "--after", "bo b")

    assert cells(first.stdout, "ada")
    assert cells(first.stdout, "bo")[1] == "b"
    assert not {"bob", "cleo"} & set(first.stdout.split())
    assert "--after 'bo b'" in first.stderr
    assert cells(last.stdout, "bob")
    assert cells(last.stdout, "cleo")
    assert "ada" not in last.stdout
    assert last.stderr == ""
    assert "bob" in saved.sessions("list", "--prefix", "bo").stdout
    assert "no sessions with such names" in saved.sessions("list", "--prefix", "x").stderr


def test_logs_a_line_for_each_commit(filled: Saved) -> None:
    result = filled.sessions("log", "alice")

    assert result.exit_code == 0, result.output
    first, second, third = result.stdout.splitlines()
    for line, id in zip((first, second, third), ids_of(filled), strict=True):
        assert id[:8] in line
        assert id not in line
    assert first.split()[1:3] == ["turn", "1"]
    assert "  phone  2 messages" in second
    assert third.startswith("head")
    assert third.endswith("absorbed 1 message")
    assert not result.stdout.count("left")


def test_logs_what_was_left(filled: Saved) -> None:
    ids = ids_of(filled)
    assert filled.sessions("rollback", "alice", "--to", ids[0], "--yes").exit_code == 0

    lines = filled.sessions("log", "alice").stdout.splitlines()

    assert [line.split()[0] for line in lines] == ["head", "left", "left"]


def test_logs_texts_and_whether_they_were_written(filled: Saved) -> None:
    result = filled.sessions("log", "alice", "--texts")

    assert row(result.stdout, "My dog is called Rex.").split()[1:3] == ["user", "written"]
    assert row(result.stdout, "I [bold]love[/bold] him.").split()[1:3] == ["user", "written"]
    assert row(result.stdout, "Rex was fed.").split()[1:3] == ["tool", "written"]
    replies = [line for line in result.stdout.splitlines() if "assistant" in line]
    assert len(replies) == 2
    assert not any("written" in line for line in replies)


def test_logs_calls_of_tools(filled: Saved, engine: DeltaMemEngine) -> None:
    call = {"name": "feed", "arguments": {"dog": "Rex"}, "id": "1"}
    fed = [
        {"role": "user", "content": "Feed him."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Done.", "tool_call_id": "1"},
    ]
    engine.absorb(fed, session="carol")
    assert 'feed({"dog": "Rex"})' in row(filled.sessions("log", "carol", "--texts").stdout, "assistant")


def test_logs_that_text_is_not_kept(saved: Saved) -> None:
    with DeltaMemEngine.from_pretrained(
        saved.model, adapter=saved.adapter, store=saved.store, transcript="none"
    ) as engine:
        engine.generate([{"role": "user", "content": "My dog is called Rex."}], session="alice", max_new_tokens=2)

    result = saved.sessions("log", "alice", "--texts")

    assert result.exit_code == 0, result.output
    assert result.stdout.count("not kept") == 2
    assert "Rex" not in result.stdout


def test_logs_notes_and_an_empty_session(filled: Saved) -> None:
    with SQLStore(filled.store) as store:
        head = store.snapshot(ids_of(filled, "bob")[-1])
        noted = replace(head, id="noted", parent=head.id, turn=2, entries=(), note="could not be [undone]")
        store.commit("bob", noted, expected=head.id)
    assert row(filled.sessions("log", "bob").stdout, "noted").endswith("0 messages  (could not be [undone])")

    assert filled.sessions("rollback", "bob", "--turns", "2", "--yes").exit_code == 0
    result = filled.sessions("log", "bob")
    assert "Session bob is empty." in result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["left", "left"]
    assert "It is empty." in filled.sessions("show", "bob").stderr


def test_shows_the_norm_of_each_layer_and_head(filled: Saved, engine: DeltaMemEngine) -> None:
    result = filled.sessions("show", "alice")

    assert result.exit_code == 0, result.output
    heads = engine.state("alice").tensor[0].norm(dim=(2, 3))
    table = result.stdout[result.stdout.index("Norm") :]
    for layer in range(2):
        number, norm, *_, steps, used = cells(table, str(layer))
        assert (number, norm) == (str(layer), f"{heads[layer].norm():.3f}")
        assert len(steps) == 2
        assert steps[int(heads[layer].argmax())] == "█"
        assert 1 <= float(used) <= 4
    assert result.stdout.startswith("alice: 3 turns, 5 messages, ")
    assert "\nDirections: " in result.stdout
    assert not any(f"\n{sign}: " in result.stdout for sign in "βλg")


def test_shows_how_much_is_new(filled: Saved, engine: DeltaMemEngine) -> None:
    shares = engine.session("alice").inspect(writes=False).replaced

    result = filled.sessions("show", "alice")

    assert list(shares) == [1]
    assert row(result.stdout, " turn ").split()[:3] == ["1", "turn", f"{shares[1]:.0%}"]
    assert row(filled.sessions("show", "bob").stdout, " turn ").split()[:3] == ["1", "turn", "100%"]


def test_shows_what_was_written_last(filled: Saved) -> None:
    where = ["--model", str(filled.model), "--adapter", str(filled.adapter)]

    result = filled.sessions("show", "bob", "--writes", *where)

    assert result.exit_code == 0, result.output
    assert "user  strength" in result.stdout
    assert "<|im_start|>user: Hello.<|im_end|>" in result.stdout.replace("\n", "")
    assert "underlined where reads of the memory opened" in result.stdout
    assert "assistant  not written, reads open up to 0." in result.stdout
    assert "differs" not in result.stderr
    table = result.stdout[result.stdout.index("Norm") : result.stdout.index("Written last")]
    assert all(0 < float(gate) < 1 for gate in cells(table, "0")[-3:])  # β, λ and g
    for sign, word in {"β": "written", "λ": "kept", "g": "reads"}.items():
        assert word in row(table, f"{sign}: ")
    strongest = result.stdout[result.stdout.index("Strongest") :].splitlines()
    assert len([line for line in strongest[2:] if line.strip()]) == 12


def test_shows_json(filled: Saved, engine: DeltaMemEngine) -> None:
    result = filled.sessions("show", "alice", "--json")

    view = engine.session("alice").inspect(writes=False)
    assert json.loads(result.stdout) == json.loads(json.dumps(view.as_dict()))
    assert json.loads(result.stdout)["last"] is None


def test_a_model_that_does_not_fit_is_an_error(filled: Saved, tmp_path: Path) -> None:
    randomised(DeltaMemAdapter.from_pretrained(filled.adapter), seed=1).save_pretrained(tmp_path / "other")
    where = ["--model", str(filled.model), "--adapter", str(tmp_path / "other")]

    result = filled.sessions("show", "alice", "--writes", *where)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "rebuild the session" in result.stderr


@pytest.mark.parametrize("command", [["show"], ["log"], ["forget", "--yes"]], ids=lambda c: c[0])
@pytest.mark.parametrize("name", ["carol", "", " alice", "Alice"])
def test_an_unknown_session_is_one_message_on_stderr(filled: Saved, command: list[str], name: str) -> None:
    result = filled.sessions(*command, name)

    assert (result.exit_code, result.stdout) == (1, "")
    see = f"see `deltamem sessions list --store {filled.store}`"
    meant = "; did you mean 'alice'?" if "lice" in name else ""
    assert result.stderr == f"Error: there is no session {name!r} in this store: {see}{meant}\n"


def test_an_unknown_snapshot_is_to_be_looked_for_in_the_same_store(filled: Saved) -> None:
    result = filled.sessions("rollback", "alice", "--to", "none", "--yes")

    assert result.exit_code == 1
    assert result.stderr.endswith(f"see `deltamem sessions log alice --store {filled.store}`\n")


def test_a_store_is_named_again_without_its_password() -> None:
    assert store_option("postgresql://me:secret@host/db") == " --store 'postgresql://me:***@host/db'"
    assert store_option("my store.db") == " --store 'my store.db'"
    assert store_option(None) == ""


@pytest.mark.parametrize("command", [["list"], *([c, "alice"] for c in ("show", "log", "forget"))], ids=lambda c: c[0])
def test_a_missing_store_is_an_error_and_is_not_created(saved: Saved, command: list[str]) -> None:
    result = saved.sessions(*command)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: there is no store at {saved.store}")
    assert not saved.store.exists()


def test_a_file_that_is_no_store_is_an_error(saved: Saved) -> None:
    saved.store.write_text("This is not a database, but it is long enough to have a header." * 4)

    result = saved.sessions("list")

    assert result.exit_code == 1
    assert "is not a database" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_corrupt_state_is_an_error_but_the_log_is_fine(filled: Saved) -> None:
    with SQLStore(filled.store) as store:
        info = store.session("bob")
        assert info is not None
        assert info.head is not None
        head = store.snapshot(info.head)
        broken = replace(head, id="broken", parent=head.id, turn=2, entries=(), state=head.state[:-5])
        store.commit("bob", broken, expected=head.id)

    result = filled.sessions("show", "bob")

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "not a delta-mem state" in result.stderr
    assert "Hello." in filled.sessions("log", "bob", "--texts").stdout


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--debug", "sessions", "list", "--store", str(tmp_path / "none.db")])

    assert isinstance(result.exception, DeltaMemError)


@pytest.mark.parametrize("command", [["--help"], ["chat", "--help"], ["sessions", "list", "--store", "sqlite://"]])
def test_light_commands_import_neither_torch_nor_transformers(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from deltamem_agents.cli import app\n"
        f"app({command!r}, standalone_mode=False)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
