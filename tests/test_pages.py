"""The pages: their code is whole, names what is there, and prints what stands beneath it."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from deltamem_agents import bundled_is_cached
from tests.pages import PAGES, ROOT, Block, blocks, chains, printed, steady

ALL = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in ALL if block.language == "python"]
CHAINS = [chain for page in PAGES for chain in chains(page)]
LINKED = [
    *PAGES,
    ROOT / "RESULTS.md",
    ROOT / "CHANGELOG.md",
    ROOT / "deltamem_agents" / "serve" / "CAPACITY.md",
    *sorted(ROOT.glob("notebooks/*.ipynb")),
]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def test_every_fence_is_read() -> None:
    """A block that is indented, or of a language nobody runs, would show what nobody has tried."""
    shown = re.findall(r"^ *```(\S+)", TEXT, re.MULTILINE)
    assert set(shown) <= {"python", "bash", "text", "yaml", "json"}
    assert len([language for language in shown if language in ("python", "bash")]) == len(ALL) >= 20


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_code_compiles_and_what_it_imports_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_what_is_printed_is_shown(block: Block) -> None:
    if block.runs:
        assert ("print(" in block.code) == (block.shown is not None)


def test_commands_that_are_named_exist() -> None:
    from deltamem_agents.cli import app

    named = set(re.findall(r"(?:^|`|/)deltamem ([a-z]+)", TEXT, re.MULTILINE))
    groups = {group.name for group in app.registered_groups}
    commands = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback is not None}
    assert named <= groups | commands
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE)) <= targets


def prose(path: Path) -> str:
    """A page's text, or a notebook's, without what is code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The names that GitHub and the site give to a page's headings, each once."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(page)):
        if link.startswith("attachment:"):
            cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
            assert any(link.removeprefix("attachment:") in cell.get("attachments", ()) for cell in cells), link
        elif "://" not in link:
            target = (page.parent / link) if link else page
            assert target.exists(), f"{page.relative_to(ROOT)} links to {link}, which is not there"
            assert not anchor or anchor in anchors(target), f"{page.relative_to(ROOT)}: no heading {link}#{anchor}"


def test_what_varies_is_not_compared() -> None:
    assert steady("pid 12, 3.4 s, 0a1b2c3d\n") == steady("pid 99, 12 s, ffff0000")
    assert steady("Lisbon") != steady("London")


@pytest.mark.slow
@pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model has not been fetched")
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: str(chain[0]))
def test_a_block_prints_what_is_shown(chain: list[Block]) -> None:
    """If a new adapter says other things: `python -m tests.pages`."""
    for block, text in zip(chain, printed(chain), strict=True):
        assert steady(text) == steady(block.shown or ""), block
