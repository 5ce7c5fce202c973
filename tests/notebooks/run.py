"""Notebooks, run in kernels of their own.

`python -m tests.notebooks.run` runs all of them on the bundled model and keeps what they show, and
`python -m tests.notebooks.run 05_serve` one.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "notebooks"
NAMES = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
SETTINGS = "settings"
"""The cell that says which model, and how much of everything."""


def read(name: str) -> NotebookNode:
    """A notebook as it is saved."""
    notebook: NotebookNode = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def code(notebook: NotebookNode) -> list[NotebookNode]:
    """Its cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(name: str, folder: Path, *, timeout: int, settings: str = "") -> NotebookNode:
    """A fresh run in a folder, with the scripts that lie beside the notebooks.

    Args:
        name: of the notebook.
        folder: the kernel's working directory, an empty one.
        timeout: seconds for each cell.
        settings: Python that is added to the notebook's settings.
    """
    for script in FOLDER.glob("*.py"):
        shutil.copy(script, folder)
    notebook = read(name)
    for cell in code(notebook):
        cell.outputs = []
        if cell.id == SETTINGS:
            cell.source += f"\n{settings}"
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    client = NotebookClient(
        notebook,
        timeout=timeout,
        startup_timeout=600,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute(env=os.environ | quiet)


def renew(name: str) -> None:
    """Runs a notebook and keeps what it shows."""
    saved = read(name)
    with tempfile.TemporaryDirectory() as folder:
        fresh = run(name, Path(folder), timeout=7200)
    for cell, ran in zip(code(saved), code(fresh), strict=True):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    nbformat.write(saved, FOLDER / f"{name}.ipynb")  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    for each in sys.argv[1:] or NAMES:
        renew(each)
        print(each, flush=True)
