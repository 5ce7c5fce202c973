"""Who may import whom, read off the import statements: the layers of the design, and nothing else."""

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "deltamem_agents"
INTEGRATIONS = ROOT / "integrations"

LAYERS = ["errors", "config", "messages", "ops", "state", "layer", "adapter", "backbone", "generation", "engine"]
"""From the ground up: each may import those before it."""
MAY_IMPORT = {part: set(LAYERS[:number]) for number, part in enumerate(LAYERS)}
MAY_IMPORT["store"] = {"errors", "state"}
MAY_IMPORT["engine"] |= {"store"}
MAY_IMPORT["train"] = set(LAYERS) - {"engine"}
MAY_IMPORT["evaluate"] = {*LAYERS, "store", "train"}
MAY_IMPORT["plots"] = {"errors"}
MAY_IMPORT["bench"] = {*LAYERS, "store", "train", "plots"}
MAY_IMPORT["report"] = {*LAYERS, "store"}
MAY_IMPORT["serve"] = {*LAYERS, "store", "report"}
MAY_IMPORT["cli"] = {*LAYERS, "store", "train", "evaluate", "bench", "report", "serve"}
TOP = {"train", "evaluate", "bench", "report", "serve", "cli"}
FRAMEWORKS = ("langchain", "llama_index")
VAGUE = {"utils", "util", "helpers", "helper", "manager", "impl", "common"}


@dataclass(frozen=True)
class Import:
    """One imported module, and the name taken from it, if one is."""

    path: Path
    line: int
    module: str
    name: str | None

    def __str__(self) -> str:
        what = self.module if self.name is None else f"{self.name} from {self.module}"
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {what}"


def imports(path: Path) -> Iterator[Import]:
    """All import statements of a file, also those inside functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            for alias in node.names:
                yield Import(path, node.lineno, node.module or "", alias.name)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def part_of(path: Path) -> str:
    """The layer that a file of the package belongs to; the package's own `__init__` belongs to none."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_part(found: Import) -> str | None:
    """The layer that an import reaches; None if it is another package's."""
    top, *rest = found.module.split(".")
    if top != PACKAGE.name:
        return None
    return rest[0] if rest else str(found.name)


def within_package(path: Path) -> list[Import]:
    return [found for found in imports(path) if imported_part(found) is not None]


def packages() -> list[str]:
    """Every package here, by name."""
    inits = [init.parent for folder in (PACKAGE, INTEGRATIONS) for init in folder.rglob("__init__.py")]
    return sorted(".".join(p.relative_to(INTEGRATIONS if INTEGRATIONS in p.parents else ROOT).parts) for p in inits)


def test_every_part_has_its_place() -> None:
    parts = {part_of(path) for path in files(PACKAGE)} - {"__init__"}
    assert parts <= MAY_IMPORT.keys()


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_a_layer_imports_only_what_is_below_it(part: str) -> None:
    mine = [path for path in files(PACKAGE) if part_of(path) == part]
    allowed = MAY_IMPORT[part] | {part}
    wrong = [str(found) for path in mine for found in within_package(path) if imported_part(found) not in allowed]
    assert not wrong


def test_the_package_offers_nothing_from_the_top() -> None:
    wrong = [str(found) for found in within_package(PACKAGE / "__init__.py") if imported_part(found) in TOP]
    assert not wrong


def test_integrations_import_only_public_names() -> None:
    public = set(importlib.import_module(PACKAGE.name).__all__)
    wrong = [
        str(found)
        for path in files(INTEGRATIONS)
        for found in within_package(path)
        if found.module != PACKAGE.name or found.name not in public
    ]
    assert not wrong


def test_an_integration_knows_no_other_framework() -> None:
    for integration in INTEGRATIONS.iterdir():
        others = tuple(f for f in FRAMEWORKS if not integration.name.startswith(f))
        wrong = [str(f) for path in files(integration) for f in imports(path) if f.module.startswith(others)]
        assert not wrong


def test_the_core_knows_no_framework() -> None:
    core = [path for path in files(PACKAGE) if part_of(path) != "cli"]
    wrong = [str(found) for path in core for found in imports(path) if found.module.startswith(FRAMEWORKS)]
    assert not wrong


@pytest.mark.parametrize("name", packages())
def test_all_is_sorted_and_importable(name: str) -> None:
    package = importlib.import_module(name)
    exported = getattr(package, "__all__", [])
    # as ruff sorts it: constants, then classes, then functions
    assert exported == sorted(exported, key=lambda n: (0 if n.isupper() else 1 if n[0].isupper() else 2, n))
    assert len(set(exported)) == len(exported)
    for export in exported:
        assert hasattr(package, export), f"{name}.__all__ names {export}, which is not there"


def test_no_module_has_a_vague_name() -> None:
    named = [path for folder in (PACKAGE, INTEGRATIONS) for path in folder.rglob("*") if path.suffix in ("", ".py")]
    assert not [str(path.relative_to(ROOT)) for path in named if path.stem.strip("_") in VAGUE]
