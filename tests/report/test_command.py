"""`deltamem sessions report`: the page as a file, without a model unless writes are asked for."""

import os
import stat
from pathlib import Path

import pytest
from markupsafe import escape

from deltamem_agents import DeltaMemEngine, SQLStore
from deltamem_agents.report import recent_writes, session_page
from tests.cli.conftest import Saved, engine, folders, saved

__all__ = ["engine", "folders", "saved"]


@pytest.fixture
def filled(saved: Saved, engine: DeltaMemEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saved:
    """A session of two turns, seen from an empty folder."""
    for text in ("My dog is called Rex.", "I love him."):
        engine.generate([{"role": "user", "content": text}], session="team/alice", max_new_tokens=4)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return saved


def test_it_writes_what_the_store_tells(filled: Saved) -> None:
    result = filled.sessions("report", "team/alice")

    assert result.exit_code == 0, result.output
    assert "team-alice.html: 2 turns, 4 messages, " in result.stderr
    with SQLStore(filled.store) as store:
        assert Path("team-alice.html").read_text(encoding="utf-8") == session_page(store, "team/alice")


@pytest.mark.skipif(os.name == "nt", reason="files have no such modes there")
def test_what_leaves_the_store_is_private_as_it_is(filled: Saved) -> None:
    page, export = Path("page.html"), Path("alice.zip")
    page.write_text("seen by all")
    page.chmod(0o644)

    assert filled.sessions("report", "team/alice").exit_code == 0
    assert filled.sessions("report", "team/alice", "--output", str(page), "--force").exit_code == 0
    assert filled.sessions("export", "team/alice", str(export)).exit_code == 0

    assert [stat.S_IMODE(file.stat().st_mode) for file in (Path("team-alice.html"), page, export)] == [0o600] * 3


def test_it_loads_no_model_without_being_asked(filled: Saved) -> None:
    result = filled.sessions("report", "team/alice", "--model", "nowhere")
    assert result.exit_code == 0, result.output


def test_with_writes_it_shows_the_last_turns_word_by_word(filled: Saved, engine: DeltaMemEngine) -> None:
    where = ["--model", str(filled.model), "--adapter", str(filled.adapter)]

    result = filled.sessions("report", "team/alice", "--writes", "--last", "1", "--output", "page.html", *where)

    assert result.exit_code == 0, result.output
    writes = recent_writes(engine, "team/alice", turns=1)
    assert Path("page.html").read_text(encoding="utf-8") == session_page(engine.store, "team/alice", writes=writes)


def test_asked_it_shows_what_the_memory_answers(filled: Saved, engine: DeltaMemEngine) -> None:
    where = ["--model", str(filled.model), "--adapter", str(filled.adapter)]
    before = engine.info("team/alice")

    result = filled.sessions("report", "team/alice", "--ask", "--output", "page.html", *where)

    assert result.exit_code == 0, result.output
    answers = engine.remembered("team/alice")
    page = Path("page.html").read_text(encoding="utf-8")
    assert page == session_page(engine.store, "team/alice", answers=answers)
    assert all(f"<dt>{escape(answer.question)}</dt>" in page for answer in answers)
    assert engine.info("team/alice") == before


def test_an_empty_session_needs_no_model_even_for_writes(filled: Saved, engine: DeltaMemEngine) -> None:
    engine.session("team/alice").rollback(turns=2)
    result = filled.sessions("report", "team/alice", "--writes", "--ask", "--model", "nowhere")
    assert result.exit_code == 0, result.output


def test_a_file_that_is_there_is_kept(filled: Saved) -> None:
    Path("team-alice.html").write_text("mine")

    result = filled.sessions("report", "team/alice")

    assert result.exit_code == 1
    assert "Error: team-alice.html exists" in result.stderr
    assert Path("team-alice.html").read_text() == "mine"
    assert filled.sessions("report", "team/alice", "--force").exit_code == 0
    assert Path("team-alice.html").read_text() != "mine"


def test_what_cannot_be_done_is_one_red_line(filled: Saved, tmp_path: Path) -> None:
    see = f"see `deltamem sessions list --store {filled.store}`"
    for arguments, says in (
        (("nobody",), f"there is no session 'nobody' in this store: {see}"),
        (("team/alice", "--output", str(tmp_path / "no" / "page.html")), "cannot be written"),
    ):
        result = filled.sessions("report", *arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")
        assert says in result.stderr
        assert "Traceback" not in result.output
    assert not list(Path().iterdir())
