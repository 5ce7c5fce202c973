"""What the pages show: blocks of code, run as a reader would run them, and the output shown beneath each.

`python -m tests.pages` runs all of them on the bundled model and writes what was printed into the pages, and
`python -m tests.pages README.md` those of one page: after a new adapter, or where an answer has changed.

A block has an empty folder to itself, and so a store of its own. A comment in front of it changes that:

    <!-- goes on -->          runs where the block before it ran, with its names
    <!-- in the background --> is a server: the blocks that go on find it listening
    <!-- not run: why -->     is only read
"""

import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("integrations/*/README.md")),
    *sorted(ROOT.glob("deltamem_agents/docs/*.md")),
]
_BLOCK = re.compile(
    r"(?:<!-- (?P<how>goes on|in the background|not run: [^>]+) -->\n+)?"
    r"^```(?P<language>python|bash)\n(?P<code>.*?)^```$(?:\n\n^```text\n(?P<shown>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
_END = "\x1e"
_VARIES = (
    (r"\bpid \d+", "pid N"),
    (r"\b\d+(?:\.\d+)? s\b", "N s"),
    (r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b", "TIME"),
    (r"\b(?=[0-9a-f]*\d)[0-9a-f]{6,64}\b", "ID"),
)
SECONDS = 900
LIBRARIES = ["langchain.agents", "langchain_deltamem", "llama_index_deltamem", "deltamem_agents.adapter"]


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: Path
    line: int
    language: str
    code: str
    shown: str | None
    how: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether it is run, and not only read."""
        return not self.how.startswith("not run")


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=page,
            line=text.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            code=found["code"],
            shown=found["shown"],
            how=found["how"] or "",
        )
        for found in _BLOCK.finditer(text)
    ]


def chains(page: Path) -> list[list[Block]]:
    """The blocks that run, those that go on with one behind it."""
    found: list[list[Block]] = []
    for block in blocks(page):
        if block.how == "goes on":
            found[-1].append(block)
        elif block.runs:
            found.append([block])
    return found


def printed(chain: list[Block]) -> list[str]:
    """What each block of a chain prints, on the bundled model, in an empty folder.

    Raises:
        AssertionError: one of them failed.
    """
    outputs: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        for (language, how), some in groupby(chain, lambda b: (b.language, b.how == "in the background")):
            together = list(some)
            if how:
                for block in together:
                    servers.enter_context(_server(block, folder))
                    outputs.append("")
            elif language == "python":
                outputs += _python(together, folder)
            else:
                outputs += [_run(["bash", "-euo", "pipefail", "-c", b.code], folder, str(b)) for b in together]
    return outputs


def steady(text: str) -> str:
    """The text without what differs from run to run: process ids, seconds, times, ids of snapshots."""
    for pattern, name in _VARIES:
        text = re.sub(pattern, name, text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def renew(page: Path) -> int:
    """Runs a page's blocks and writes into it what they printed; how many outputs have changed."""
    said = {block.line: text for chain in chains(page) for block, text in _zip(chain)}
    whole = page.read_text(encoding="utf-8")
    changed = 0

    def with_output(found: re.Match[str]) -> str:
        nonlocal changed
        text = said.get(whole.count("\n", 0, found.start("language")) + 1)
        if text is None or steady(text) == steady(found["shown"] or ""):
            return found[0]
        changed += 1
        before = found[0][: found.end("code") - found.start()] + "```"
        return before + (f"\n\n```text\n{text}```" if text else "")

    page.write_text(_BLOCK.sub(with_output, whole), encoding="utf-8")
    return changed


def _zip(chain: list[Block]) -> Iterator[tuple[Block, str]]:
    return zip(chain, printed(chain), strict=True)


def _python(chain: list[Block], folder: str) -> list[str]:
    """Blocks that share their names: one program, in a process of its own, forked from one that has the libraries."""
    program = f"\nprint('{_END}', flush=True)\n".join(block.code for block in chain)
    with tempfile.TemporaryDirectory() as beside:
        said = Path(beside) / "said"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
        process = context.Process(target=_execute, args=(program, folder, said))
        process.start()
        process.join(SECONDS)
        process.kill()
        text = said.read_text(encoding="utf-8")
    assert process.exitcode == 0, f"{chain[0]} failed:\n{text}"
    return text.split(f"{_END}\n")


def _execute(program: str, folder: str, said: Path) -> None:
    os.chdir(folder)
    os.environ.update(_environment(folder))
    with said.open("w", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            exec(compile(program, "page", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            raise
        finally:
            sys.stdout.flush()


def _run(command: list[str], folder: str, name: str) -> str:
    found = subprocess.run(
        command, cwd=folder, env=_environment(folder), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert found.returncode == 0, f"{name} failed:\n{found.stdout}\n{found.stderr}"
    return found.stdout


def _environment(folder: str) -> dict[str, str]:
    """This process's, with these sources first, 80 columns, and a data folder that goes away."""
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(paths),
        "XDG_DATA_HOME": folder,
        "PYTHONIOENCODING": "utf-8",
        "COLUMNS": "80",
    }


@contextmanager
def _server(block: Block, folder: str) -> Iterator[None]:
    """A server while other blocks run, from when it is ready."""
    port = re.search(r"--port (\d+)", block.code)
    ready = f"http://127.0.0.1:{port[1] if port else 8080}/ready"
    command = ["bash", "-c", f"exec {block.code}"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, cwd=folder, env=_environment(folder), stdout=log, stderr=log) as process,
    ):
        try:
            for _ in range(SECONDS):
                with suppress(OSError):
                    urllib.request.urlopen(ready, timeout=5).close()
                    break
                time.sleep(1)
                log.seek(0)
                assert process.poll() is None, f"{block} ended: {log.read()}"
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


if __name__ == "__main__":
    for each in [Path(name).resolve() for name in sys.argv[1:]] or PAGES:
        print(f"{each.relative_to(ROOT)}: {renew(each)} changed", flush=True)
