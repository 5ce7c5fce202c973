"""The docs page: its code runs on any model, and what it shows as output is what the bundled one prints."""

import re
from pathlib import Path

import pytest

from deltamem_agents import bundled_is_cached
from langchain_deltamem import ChatDeltaMem
from tests.langchain.page import PAGE, examples, outputs


def test_examples_run(model: ChatDeltaMem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model in the place of the one that the page loads."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__", "model": model.model_copy(update={"max_new_tokens": 160})}
    for example in examples():
        printed = "" if example.loads else example.run(names)
        assert bool(printed) == bool(example.shown), example.code
    assert [example.loads for example in examples()].count(True) == 1


@pytest.mark.slow
@pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model has not been fetched")
def test_output_is_what_was_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a new adapter says other things: `python -m tests.langchain.page`."""
    monkeypatch.chdir(tmp_path)
    assert list(outputs()) == [example.shown or "" for example in examples()]


def test_it_has_the_sections_of_langchain_s_pages() -> None:
    sections = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    expected = ["Overview", "Setup", "Instantiation", "Invocation", "Chaining", "Tool calling", "Structured output"]
    assert sections[: len(expected)] == expected
    assert {"Agents", "Memory", "Errors"} <= set(sections)
