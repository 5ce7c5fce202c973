"""Who may ask, and which sessions are theirs: API keys, and the namespaces that they open."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deltamem_agents.engine.records import check_session_name
from deltamem_agents.errors import ConfigError

SEPARATOR = ":"
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY = re.compile(r"[!-~]{8,512}")


@dataclass(frozen=True, slots=True)
class Namespace:
    """The sessions of one holder of keys. In the store their names begin with the namespace's, then a colon.

    A namespace's name holds no colon, so no session's name of one can be a session's name of another.
    """

    name: str = ""
    """Empty: all sessions of the store, by their own names."""

    @property
    def prefix(self) -> str:
        """How the names in the store begin."""
        return f"{self.name}{SEPARATOR}" if self.name else ""

    def stored(self, name: str) -> str:
        """The name in the store of a session.

        Raises:
            SessionError: no valid name, or too long together with the namespace's.
        """
        return check_session_name(self.prefix + check_session_name(name))

    def shown(self, stored: str) -> str:
        """The name that the holder knows a session of the store by."""
        return stored.removeprefix(self.prefix)

    def owns(self, stored: str) -> bool:
        """Whether a session of the store is the holder's."""
        return stored.startswith(self.prefix)


class Keys:
    """API keys and their namespaces. Only digests are kept, so comparing them tells nothing about a key."""

    def __init__(self, namespaces: Mapping[str, str]) -> None:
        self._namespaces = {_digest(key): Namespace(name) for key, name in namespaces.items()}
        self._digests = {_label(digest): digest for digest in self._namespaces}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file of lines `key namespace`; empty lines and those that begin with # are passed over.

        Raises:
            ConfigError: the file cannot be read, a line is no such pair, or a key stands twice: names the line.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}): expected a file of lines 'key namespace'") from error
        found: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            words = line.split()
            if len(words) != 2 or not _KEY.fullmatch(words[0]) or not _NAMESPACE.fullmatch(words[1]):
                raise ConfigError(
                    f"{path}, line {number} is no pair of key and namespace: expected a key of 8 to 512 visible ASCII "
                    "characters, a blank, and a name of 1 to 64 letters, digits, _ and -"
                )
            if words[0] in found:
                raise ConfigError(f"{path}, line {number} holds a key that an earlier line holds: give each once")
            found[words[0]] = words[1]
        if not found:
            raise ConfigError(f"{path} holds no keys: give one 'key namespace' a line")
        return cls(found)

    def namespace(self, key: str) -> Namespace | None:
        """What a key opens; None for a key that is not known."""
        return self._namespaces.get(_digest(key))

    @staticmethod
    def ticket(key: str, *, until: int) -> str:
        """What stands for a key up to a time, in seconds since 1970: any server that knows the key can check it.

        It tells nothing about the key, and nobody who doesn't know the key can make one or change its time.
        """
        digest = _digest(key)
        return f"{_label(digest)}.{until}.{_seal(digest, str(until))}"

    def admitted(self, ticket: str, *, now: float) -> Namespace | None:
        """What a ticket opens; None where it was made up, has run out, or stands for a key that is not known."""
        label, until, seal = (*ticket.split("."), "", "", "")[:3]
        digest = self._digests.get(label)
        if digest is None or not hmac.compare_digest(seal.encode(), _seal(digest, until).encode()):
            return None
        return self._namespaces[digest] if now < int(until) else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _label(digest: bytes) -> str:
    return hashlib.sha256(b"label" + digest).hexdigest()[:32]


def _seal(digest: bytes, until: str) -> str:
    return hmac.new(digest, until.encode(), hashlib.sha256).hexdigest()
