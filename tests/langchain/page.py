"""The docs page's examples, run in order as a reader would run them, and what they print.

`python -m tests.langchain.page` runs them on the bundled model and writes into the page what was printed.
"""

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import langchain_deltamem

PAGE = Path(langchain_deltamem.__file__).parent / "README.md"
_EXAMPLE = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A block of code, and the output that the page shows behind it."""

    code: str
    shown: str | None

    @property
    def loads(self) -> bool:
        """Whether it makes the model that the others use."""
        return "model = ChatDeltaMem(" in self.code

    def run(self, names: dict[str, object]) -> str:
        """What it prints."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(self.code, str(PAGE), "exec"), names)
        return printed.getvalue()


def examples() -> list[Example]:
    """All of the page's."""
    return [Example(code, shown) for code, shown in _EXAMPLE.findall(PAGE.read_text(encoding="utf-8"))]


def outputs() -> Iterator[str]:
    """What each prints on the bundled model."""
    names: dict[str, object] = {"__name__": "__main__"}
    for example in examples():
        yield example.run(names)


def write() -> None:
    """Puts what is printed into the page."""
    page, folder = PAGE.read_text(encoding="utf-8"), Path.cwd()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        printed = outputs()
        text = _EXAMPLE.sub(lambda found: _with_output(found[1], next(printed)), page)
        os.chdir(folder)
    PAGE.write_text(text, encoding="utf-8")


def _with_output(code: str, printed: str) -> str:
    return f"```python\n{code}```" + (f"\n\n```text\n{printed}```" if printed else "")


if __name__ == "__main__":
    write()
