"""How the site comes about: pages that lie elsewhere take their place, and the reference lists what is public."""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
HERE = "deltamem_agents/docs"
ELSEWHERE = {
    "README.md": "index.md",
    "integrations/langchain_deltamem/README.md": "langchain.md",
    "integrations/llama_index_deltamem/README.md": "llama_index.md",
    "RESULTS.md": "results.md",
    "deltamem_agents/serve/CAPACITY.md": "capacity.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages of the site that are files of the repository in other places."""
REFERENCE = {
    "engine": ("The engine", "deltamem_agents/engine/__init__.py"),
    "store": ("Stores", "deltamem_agents/store/__init__.py"),
    "adapter": ("Adapters and models", "deltamem_agents/adapter/__init__.py"),
    "train": ("Training", "deltamem_agents/train/__init__.py"),
    "langchain": ("LangChain", "integrations/langchain_deltamem/__init__.py"),
    "llama_index": ("LlamaIndex", "integrations/llama_index_deltamem/__init__.py"),
    "errors": ("Errors", "deltamem_agents/errors.py"),
}
"""Pages of the reference: their titles, and the file whose public names they list."""
STYLE = """
.md-grid { max-width: 72rem; }
.md-typeset h1 { color: inherit; font-weight: 400; }
.md-typeset table:not([class]) thead:not(:has(th:not(:empty))) { display: none; }
@media (max-width: 45em) {
  .md-typeset table:not([class]) :is(th, td) { min-width: 0; padding: .5em .6em; }
  .md-typeset table:not([class]) td:is(:first-child, :has(code)) { min-width: 6rem; }
  .md-typeset table:not([class]) td:has(.doc-md-description) { min-width: 10rem; }
}
"""
"""Room for tables and for 80 columns; titles that can be read; no empty heads; small cells on a narrow screen."""
_LINK = re.compile(r"\[(?P<text>[^\[\]]+)\]\((?P<link>[^)#\s]+)(?P<anchor>#[^)]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LIST = re.compile(r"^- .*(?:\n(?:- |  |$).*)*", re.MULTILINE)
_COMMENT = re.compile(r"<!-- (?:goes on|in the background|not run: [^>]+) -->\n+")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what lies elsewhere, and the reference."""
    for path, place in ELSEWHERE.items():
        files.append(File.generated(config, place, content=(ROOT / path).read_text(encoding="utf-8")))
    files.append(File.generated(config, "site.css", content=STYLE))
    for name, (title, source) in REFERENCE.items():
        module = source.removesuffix("/__init__.py").removesuffix(".py").removeprefix("integrations/").replace("/", ".")
        text = f"# {title}\n\n" + "".join(f"::: {module}.{public}\n\n" for public in _public(ROOT / source))
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def _public(source: Path) -> list[str]:
    """The classes and functions that a file exports: its `__all__`, or its classes."""
    body = ast.parse(source.read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.isupper()]
    return [node.name for node in body if isinstance(node, ast.ClassDef)]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files into links between pages; what is no page is named without a link."""
    places = {place: path for path, place in ELSEWHERE.items()}
    path = places.get(page.file.src_uri, f"{HERE}/{page.file.src_uri}")

    def follow(found: re.Match[str]) -> str:
        if "://" in found["link"] or page.file.src_uri.startswith("reference/"):
            return found[0]
        to = posixpath.normpath(posixpath.join(posixpath.dirname(path), found["link"]))
        place = ELSEWHERE.get(to, to.removeprefix(f"{HERE}/"))
        if files.get_file_from_path(place) is None:
            return found["text"]
        relative = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"[{found['text']}]({relative}{found['anchor'] or ''})"

    parts = _FENCE.split(_COMMENT.sub("", markdown))
    return "".join(part if part.startswith("```") else _LIST.sub(_indented, _LINK.sub(follow, part)) for part in parts)


def _indented(found: re.Match[str]) -> str:
    """A list whose items go on with two spaces, as the site wants it: with four, and a blank line behind."""
    four = re.sub(r"^  (?=\S)", "    ", found[0], flags=re.MULTILINE)
    return re.sub(r"^(    \S.*)\n(?=- )", r"\1\n\n", four, flags=re.MULTILINE)
