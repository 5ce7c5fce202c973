"""`deltamem sessions`: what is in a store, seen without a model."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltamem_agents import DeltaMemEngine, DeltaMemError, SQLStore
from deltamem_agents.cli import app
from tests.cli.conftest import Saved


@pytest.fixture
def filled(saved: Saved, engine: DeltaMemEngine) -> Saved:
    """A store with a session of two turns and an absorbed message, and one of one turn."""
    engine.generate([{"role": "user", "content": "My dog is called Rex."}], session="alice", max_new_tokens=4)
    engine.generate(
        [{"role": "user", "content": "I [bold]love[/bold] him."}], session="alice", thread="phone", max_new_tokens=4
    )
    engine.absorb([{"role": "tool", "content": "Rex was fed."}], session="alice")
    engine.generate([{"role": "user", "content": "Hello."}], session="bob", max_new_tokens=4)
    return saved


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
    assert "deltamem chat" in result.stderr


def test_shows_every_message_and_whether_it_was_written(filled: Saved) -> None:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["sessions", "show", "alice", "--store", str(filled.store)])

    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    (told,) = (line for line in lines if "My dog is called Rex." in line)
    (loved,) = (line for line in lines if "I [bold]love[/bold] him." in line)
    (fed,) = (line for line in lines if "Rex was fed." in line)
    assert "user" in told
    assert "written" in told
    assert "alice" in told
    assert "phone" in loved
    assert fed.split()[:2] == ["3", "(absorb)"]
    assert "tool" in fed
    replies = [line for line in lines if "assistant" in line]
    assert len(replies) == 2
    assert not any("written" in line for line in replies)


def test_shows_the_norm_of_each_layer(filled: Saved, engine: DeltaMemEngine) -> None:
    result = filled.sessions("show", "alice")

    norms = engine.state("alice").tensor[0].flatten(1).norm(dim=1)
    assert len(norms) == 2
    tail = result.stdout[result.stdout.index("Norm") :]
    assert [cells(tail, str(n))[1] for n in range(2)] == [f"{norm:.3f}" for norm in norms.tolist()]


def test_shows_that_text_is_not_kept(saved: Saved) -> None:
    with DeltaMemEngine.from_pretrained(
        saved.model, adapter=saved.adapter, store=saved.store, transcript="none"
    ) as engine:
        engine.generate([{"role": "user", "content": "My dog is called Rex."}], session="alice", max_new_tokens=2)

    result = saved.sessions("show", "alice")

    assert result.exit_code == 0, result.output
    assert result.stdout.count("not kept") == 2
    assert "Rex" not in result.stdout


def test_forgets_after_a_yes(filled: Saved) -> None:
    result = filled.sessions("forget", "alice", say="y\n")

    assert result.exit_code == 0, result.output
    assert "3 turns, 5 messages" in result.stderr
    with SQLStore(filled.store) as store:
        assert [info.name for info in store.sessions()] == ["bob"]


@pytest.mark.parametrize("answer", ["n\n", "\n", ""], ids=["no", "nothing", "no stdin"])
def test_keeps_everything_without_a_yes(filled: Saved, answer: str) -> None:
    result = filled.sessions("forget", "alice", say=answer)

    assert result.exit_code == 1
    with SQLStore(filled.store) as store:
        assert [info.name for info in store.sessions()] == ["alice", "bob"]


def test_yes_asks_nothing(filled: Saved) -> None:
    result = filled.sessions("forget", "alice", "--yes")

    assert (result.exit_code, result.stdout) == (0, "")
    with SQLStore(filled.store) as store:
        assert store.session("alice") is None


@pytest.mark.parametrize("command", [["show"], ["forget", "--yes"]], ids=["show", "forget"])
@pytest.mark.parametrize("name", ["carol", "", " alice", "Alice"])
def test_an_unknown_session_is_one_message_on_stderr(filled: Saved, command: list[str], name: str) -> None:
    result = filled.sessions(*command, name)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: there is no session {name!r} in this store: see `deltamem sessions list`\n"


@pytest.mark.parametrize("command", [["list"], ["show", "alice"], ["forget", "alice"]], ids=lambda c: c[0])
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


def test_a_corrupt_state_is_an_error_after_the_log(filled: Saved) -> None:
    with SQLStore(filled.store) as store:
        info = store.session("bob")
        assert info is not None
        assert info.head is not None
        head = store.snapshot(info.head)
        broken = replace(head, id="broken", parent=head.id, turn=2, entries=(), state=head.state[:-5])
        store.commit("bob", broken, expected=head.id)

    result = filled.sessions("show", "bob")

    assert result.exit_code == 1
    assert "Hello." in result.stdout
    assert result.stderr.startswith("Error: ")
    assert "not a delta-mem state" in result.stderr


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
