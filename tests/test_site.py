"""The site of the pages: all of them are in it, and it builds without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT

CONFIG = ROOT / ".docs" / "mkdocs.yml"


def test_every_page_has_its_place() -> None:
    listed = set(re.findall(r"^ *- (?:[A-Z]\w+: )?([a-z_/]+\.md)$", CONFIG.read_text(encoding="utf-8"), re.MULTILINE))
    hooks = (ROOT / ".docs" / "pages.py").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "deltamem_agents" / "docs").glob("*.md")}
    elsewhere = set(re.findall(r'": "([a-z_]+\.md)"', hooks))
    reference = {f"reference/{name}.md" for name in re.findall(r'"(\w+)": \(', hooks)}
    assert listed == pages | elsewhere | reference


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the group of dependencies docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(CONFIG), "-d", str(tmp_path / "site")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    engine = (tmp_path / "site" / "reference" / "engine" / "index.html").read_text(encoding="utf-8")
    assert "forget_message" in engine
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="training/"' in index
    assert "goes on -->" not in index
