"""`deltamem sessions`: forks, rollbacks, moves to other stores, rebuilding and forgetting."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltamem_agents import DeltaMemAdapter, DeltaMemEngine, SQLStore
from tests.builders import randomised
from tests.cli.conftest import Saved, ids_of, turns_of


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
        (["--to", "nothing"], 1, "see `deltamem sessions log alice --store "),
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
