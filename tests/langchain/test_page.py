"""The docs page's code runs on any model. What the bundled one prints, `tests/test_pages.py` compares with the page."""

import contextlib
import io
import re
from pathlib import Path

import pytest

import langchain_deltamem
from langchain_deltamem import ChatDeltaMem
from tests.pages import blocks

PAGE = Path(langchain_deltamem.__file__).parent / "README.md"


def test_examples_run(model: ChatDeltaMem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model in the place of the one that the first block makes."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__", "model": model.model_copy(update={"max_new_tokens": 160})}
    first, *others = [block for block in blocks(PAGE) if block.language == "python"]
    assert "model = ChatDeltaMem(" in first.code
    for block in others:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block.code, str(block), "exec"), names)
        assert bool(printed.getvalue()) == bool(block.shown), block


def test_it_has_the_sections_of_langchain_s_pages() -> None:
    sections = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    expected = ["Overview", "Setup", "Instantiation", "Invocation", "Chaining", "Tool calling", "Structured output"]
    assert sections[: len(expected)] == expected
    assert {"Agents", "Memory", "Errors"} <= set(sections)
