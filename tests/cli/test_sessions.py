"""`deltamem sessions`: what is in a store, seen and changed, mostly without a model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from deltamem_agents import DeltaMemAdapter, DeltaMemEngine, DeltaMemError, SQLStore
from deltamem_agents.cli import app
from tests.builders import randomised
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


def ids_of(saved: Saved, name: str = "alice") -> list[str]:
    with SQLStore(saved.store) as store:
        return [snapshot.id for snapshot in store.log(name)]


def turns_of(saved: Saved, name: str) -> int:
    with SQLStore(saved.store) as store:
        info = store.session(name)
        assert info is not None
        return info.turns


def row(output: str, word: str) -> str:
    """The one line that says this."""
    (line,) = (line for line in output.splitlines() if word in line)
    return line


# --- log


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


# --- show


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


# --- fork and rollback


def test_forks_the_head_or_an_older_snapshot(filled: Saved) -> None:
    ids = ids_of(filled)

    assert filled.sessions("fork", "alice", "twin").exit_code == 0
    result = filled.sessions("fork", "alice", "younger", "--at", ids[0][:6])

    assert (result.exit_code, result.stdout) == (0, "")
    assert "younger: 1 turn, 2 messages." in result.stderr
    assert (turns_of(filled, "twin"), turns_of(filled, "younger"), turns_of(filled, "alice")) == (3, 1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alice", "bob"], "exists"),
        (["alice", " bad"], "not a session name"),
        (["alice", "new", "--at", "nothing"], "no snapshot 'nothing'"),
        (["carol", "new"], "no session 'carol'"),
    ],
)
def test_a_fork_that_cannot_be(filled: Saved, arguments: list[str], message: str) -> None:
    result = filled.sessions("fork", *arguments)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr


def test_rolls_back_and_forward_again(filled: Saved) -> None:
    head = ids_of(filled)[-1]

    back = filled.sessions("rollback", "alice", "--turns", "2", say="y\n")

    assert back.exit_code == 0
    assert "Move session 'alice' (3 turns, 5 messages) 2 turns back?" in back.stderr
    assert "alice: 1 turn, 2 messages." in back.stderr
    assert f"--to {head[:8]}" in back.stderr
    assert turns_of(filled, "alice") == 1
    assert filled.sessions("rollback", "alice", "--to", head[:8], "--yes").exit_code == 0
    assert turns_of(filled, "alice") == 3


def test_rolls_back_only_after_a_yes(filled: Saved) -> None:
    result = filled.sessions("rollback", "alice", "--to", ids_of(filled)[0], say="n\n")

    assert result.exit_code == 1
    assert "turn 1?" in result.stderr
    assert turns_of(filled, "alice") == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--turns", "4"], 1, "4 turns"),
        (["--to", "nothing"], 1, "see `deltamem sessions log alice`"),
        (["--to", ""], 1, "no snapshot ''"),
        ([], 2, "give either"),
        (["--to", "a", "--turns", "1"], 2, "give either"),
        (["--turns", "0"], 2, "greater than or equal to 1"),
    ],
)
def test_a_rollback_that_cannot_be(filled: Saved, arguments: list[str], code: int, message: str) -> None:
    result = filled.sessions("rollback", "alice", "--yes", *arguments)

    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert turns_of(filled, "alice") == 3


def test_anothers_snapshot_is_refused(filled: Saved) -> None:
    result = filled.sessions("rollback", "alice", "--yes", "--to", ids_of(filled, "bob")[0])

    assert result.exit_code == 1
    assert "another session's" in result.stderr


def test_an_id_is_given_by_a_prefix_that_only_it_has(filled: Saved) -> None:
    with SQLStore(filled.store) as store:
        head = store.snapshot(ids_of(filled, "bob")[-1])
        for turn, id in enumerate(("zz", "zz1", "zz23"), head.turn + 1):
            child = replace(head, id=id, parent=head.id, turn=turn, entries=())
            store.commit("bob", child, expected=head.id)
            head = child

    several = filled.sessions("rollback", "bob", "--yes", "--to", "z")
    assert several.exit_code == 1
    assert "'z' may be any of 3 snapshots, zz, zz1, zz23: give more of the id" in several.stderr
    assert filled.sessions("rollback", "bob", "--yes", "--to", "zz").exit_code == 0
    assert turns_of(filled, "bob") == 2
    assert filled.sessions("rollback", "bob", "--yes", "--to", "zz2").exit_code == 0
    assert turns_of(filled, "bob") == 4


# --- moving


def test_a_session_moves_to_another_store(filled: Saved, engine: DeltaMemEngine, tmp_path: Path) -> None:
    file, other = tmp_path / "alice.zip", replace(filled, store=tmp_path / "other.db")

    exported = filled.sessions("export", "alice", str(file))
    imported = other.sessions("import", str(file), "--as", "alicia")

    assert (exported.exit_code, exported.stdout) == (0, "")
    assert "3 snapshots" in exported.stderr
    assert (imported.exit_code, imported.stdout) == (0, "")
    assert "alicia: 3 turns, 5 messages." in imported.stderr
    with other.engine() as moved:
        assert torch.equal(moved.state("alicia").tensor, engine.state("alice").tensor)


def test_an_export_overwrites_nothing_unasked(filled: Saved, tmp_path: Path) -> None:
    file = tmp_path / "alice.zip"
    file.write_text("mine")

    refused = filled.sessions("export", "alice", str(file))

    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert file.read_text() == "mine"
    assert filled.sessions("export", "alice", str(file), "--force").exit_code == 0
    assert filled.sessions("import", str(file), "--as", "again").exit_code == 0


def test_imports_that_cannot_be(filled: Saved, tmp_path: Path) -> None:
    file, text = tmp_path / "alice.zip", tmp_path / "text"
    filled.sessions("export", "alice", str(file))
    text.write_text("no archive")

    for arguments, message in (
        ([str(file)], "'alice' exists"),
        ([str(file), "--as", ""], "not a session name"),
        ([str(tmp_path / "none")], "there is no file"),
        ([str(text)], str(text)),
    ):
        result = filled.sessions("import", *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in result.stderr


def test_rebuilds_under_another_adapter(saved: Saved, tmp_path: Path) -> None:
    randomised(DeltaMemAdapter.from_pretrained(saved.adapter), seed=1).save_pretrained(tmp_path / "other")
    other = replace(saved, adapter=tmp_path / "other")
    told = [{"role": "user", "content": "My dog is called Rex."}]
    with saved.engine() as engine:
        engine.absorb(told, session="alice")

    result = saved.sessions("rebuild", "alice", "--model", str(saved.model), "--adapter", str(other.adapter))

    assert (result.exit_code, result.stdout) == (0, ""), result.output
    assert "Rebuilt: alice, 1 turn." in result.stderr
    with other.engine() as engine:
        engine.absorb(told, session="expected")
        assert torch.allclose(engine.state("alice").tensor, engine.state("expected").tensor, atol=1e-5)
    again = other.sessions("rebuild", "carol", "--model", "nowhere")
    assert "no session 'carol'" in again.stderr


# --- forget


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


@pytest.mark.parametrize("command", [["show"], ["log"], ["forget", "--yes"]], ids=lambda c: c[0])
@pytest.mark.parametrize("name", ["carol", "", " alice", "Alice"])
def test_an_unknown_session_is_one_message_on_stderr(filled: Saved, command: list[str], name: str) -> None:
    result = filled.sessions(*command, name)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: there is no session {name!r} in this store: see `deltamem sessions list`\n"


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
