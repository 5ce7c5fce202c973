"""What the integration's README shows runs as it stands, on the bundled model."""

import re
from pathlib import Path

import pytest

import llama_index_deltamem
from deltamem_agents import bundled_is_cached

README = Path(llama_index_deltamem.__file__).parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


def test_every_public_name_is_in_it() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in llama_index_deltamem.__all__ if name not in text] == []


@pytest.mark.slow
@pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model has not been fetched")
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples keep their memory beside them
    exec(compile(EXAMPLES[number], f"example {number}", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "memory.db").exists()
