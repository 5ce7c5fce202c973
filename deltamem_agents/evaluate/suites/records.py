"""What a run has found so far: one line of JSON a question and cell, so that a killed run goes on where it was."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.suites.conditions import Cell
from deltamem_agents.evaluate.suites.conversation import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One question under one condition at one budget."""

    conversation: str
    question: str
    """Its id."""
    category: str
    condition: str
    budget: int | None
    answer: str
    """What was generated."""
    scores: Scores
    nats: float
    """Mean negative log-likelihood a token of the right answer."""
    recalls: bool
    """Whether recovery counts it."""
    ranked_first: bool | None
    """Whether no candidate was likelier than the right one; None where there are none."""
    prompt_tokens: int
    visible_tokens: int
    """Of the conversation, in the prompt."""
    evidence_share: float | None
    """Of the messages that hold the answer, the share that is visible; None where the benchmark names none."""
    seconds: float
    kept_bytes: int
    """What must be kept of the conversation to ask so: texts, or a state, or both."""

    @property
    def cell(self) -> Cell:
        """Condition and budget."""
        return Cell(self.condition, self.budget)


_RECORD = TypeAdapter(Record)


class RecordFile:
    """Records in memory, and in a file if there is one; its first line says under what circumstances.

    Args:
        path: the file; None: in memory only.
        setup: what all records of a run must agree in.

    Raises:
        ConfigError: the file is of a run with another setup, or cannot be read or written.
    """

    def __init__(self, path: Path | None, setup: Mapping[str, object]) -> None:
        self._path = path
        self._records: dict[tuple[str, Cell], Record] = {}
        header = {"setup": json.loads(json.dumps(setup))}
        if path is None:
            return
        lines = list(_lines(path))
        if not lines:
            self._write([header], mode="w")
            return
        _check_setup(path, lines[0], header)
        try:
            for line in lines[1:]:
                record = _RECORD.validate_python(line)
                self._records[record.question, record.cell] = record
        except ValidationError as error:
            raise ConfigError(f"{path} holds a line that is no record ({error}): choose another --output") from error
        self._write([header, *map(asdict, self._records.values())], mode="w")  # without a last line that was cut off

    def __iter__(self) -> Iterator[Record]:
        """All records, in the order they were found."""
        return iter(self._records.values())

    def __contains__(self, key: tuple[str, Cell]) -> bool:
        """Whether a question (by id) has its record in a cell."""
        return key in self._records

    def add(self, records: Iterable[Record]) -> None:
        """Keeps records; they are on disk when this returns."""
        new = list(records)
        self._write([asdict(record) for record in new], mode="a")
        self._records |= {(record.question, record.cell): record for record in new}

    def _write(self, lines: Iterable[Mapping[str, object]], *, mode: str) -> None:
        if self._path is not None:
            _write_lines(self._path, lines, mode=mode)


class KeptTexts:
    """Texts that the frozen model made, by name: summaries, and references where a benchmark has none.

    Args:
        path: a file of lines of JSON; None: in memory only.

    Raises:
        ConfigError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._texts = {} if path is None else {str(line["name"]): str(line["text"]) for line in _lines(path)}

    def __contains__(self, name: str) -> bool:
        """Whether there is a text of this name."""
        return name in self._texts

    def __getitem__(self, name: str) -> str:
        """The text of this name."""
        return self._texts[name]

    def __setitem__(self, name: str, text: str) -> None:
        """Keeps a text."""
        self._texts[name] = text
        if self._path is not None:
            _write_lines(self._path, [{"name": name, "text": text}], mode="a")


def _check_setup(path: Path, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    old, new = found.get("setup"), expected["setup"]
    if old == new:
        return
    assert isinstance(new, dict)
    was = old if isinstance(old, dict) else {}
    other = [name for name in sorted({*was, *new}) if was.get(name) != new.get(name)]
    changed = ", ".join(f"{name} was {was.get(name)!r} and is {new.get(name)!r}" for name in other)
    raise ConfigError(f"{path} is of another run ({changed}): go on with its settings, or choose another --output")


def _lines(path: Path) -> Iterator[dict[str, object]]:
    """The lines of a file; a last one that was cut off while it was written is left out."""
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): choose another --output") from error
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise ConfigError(f"{path}, line {number} is no JSON ({error}): choose another --output") from error
        if not isinstance(value, dict):
            raise ConfigError(f"{path}, line {number} is {line[:60]!r}, expected an object: choose another --output")
        yield value


def _write_lines(path: Path, lines: Iterable[Mapping[str, object]], *, mode: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}): choose another --output") from error
