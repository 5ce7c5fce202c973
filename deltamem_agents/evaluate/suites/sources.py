"""Where a benchmark's files are, and how to get them: none of them is bundled."""

import json
from dataclasses import dataclass
from pathlib import Path

from deltamem_agents.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Source:
    """Files of a benchmark."""

    folder: str
    """What its folder is usually called."""
    pattern: str
    """Matches its files' names."""
    origin: str
    """Where to get them, under which licence."""

    def files(self, data: Path | None) -> list[Path]:
        """The files, sorted: `data` is one of them, their folder, or a folder somewhere above theirs.

        Raises:
            ConfigError: they are not there; says where to get them.
        """
        if data is not None and data.is_file():
            return [data]
        if data is not None and data.is_dir():
            here = sorted(data.glob(self.pattern))
            found = here or sorted(p for folder in data.rglob(self.folder) for p in folder.glob(self.pattern))
            if found:
                return found
        what = "no --data was given" if data is None else f"{data} holds no {self.folder}/{self.pattern}"
        raise ConfigError(
            f"{what}: get {self.pattern} from {self.origin}, put it into a folder called {self.folder}, and name that "
            "folder, or one above it, with --data"
        )


def read_text(path: Path, *, encoding: str = "utf-8") -> str:
    """A file's text.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text(encoding=encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): check the path, or get the file anew") from error


def read_json(path: Path) -> object:
    """A file's JSON value.

    Raises:
        ConfigError: it cannot be read, or is no JSON.
    """
    try:
        value: object = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is no JSON ({error}): get the file anew") from error
    return value


def malformed(path: Path, error: Exception, expected: str) -> ConfigError:
    """The error for a file of another shape than its benchmark's."""
    found = f"{type(error).__name__}: {error}"
    return ConfigError(f"{path} is not as its benchmark publishes it ({found}): expected {expected}; get the file anew")
