"""Sessions as files: one archive holds a session's line, and another store, or the same, takes it in."""

import hashlib
import os
import re
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from deltamem_agents.errors import ConflictError, FingerprintError, SessionError, StateError, StoreError
from deltamem_agents.store.base import StateStore
from deltamem_agents.store.checks import taken, unknown_session
from deltamem_agents.store.manifest import FORMAT, Manifest, Turn, format_of
from deltamem_agents.store.records import Snapshot

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it

_SUM = re.compile(r"([0-9a-f]{64})  (\S+)")


def export_session(store: StateStore, name: str, path: str | Path, *, named: str | None = None) -> int:
    """Writes a session to a file: the line of its head, with all states, and with texts as far as the store has them.

    The file is a ZIP archive of a JSON manifest, the states as safetensors, and their checksums. It is written beside
    `path` first and then renamed: a file of that name is replaced as a whole or not at all.

    Args:
        store: Where the session is.
        name: The session.
        path: The file.
        named: What the session is called in the file; by default its name.

    Returns:
        How many snapshots it holds. Lines that the session has left are not among them.

    Raises:
        SessionNotFoundError: if the session does not exist.
        SessionError: if it has no head.
        StateError: if a state is none that `MemoryState.to_bytes` wrote.
        StoreError: if the store cannot be read, or the file not be written.
    """
    info = store.session(name)
    if info is None:
        raise unknown_session(name)
    if info.head is None:
        raise SessionError(f"session {name!r} has no head, hence nothing to export: move its head to a snapshot first")
    line = store.line(info.head, since=-1)
    manifest = Manifest(format=FORMAT, name=name if named is None else named, turns=tuple(map(Turn.of, line)))
    sums = []
    with _replacing(Path(path)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def add(part: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(part), data)  # without times: the same session is the same file
            sums.append(f"{hashlib.sha256(data).hexdigest()}  {part}\n")

        add(MANIFEST, manifest.model_dump_json(indent=1).encode())
        states = _States()
        for number, snapshot in enumerate(line):
            state = store.snapshot(snapshot.id).state
            states.check(state, snapshot.fingerprint, turn=snapshot.turn)
            add(_state_part(number), state)
        archive.writestr(zipfile.ZipInfo(SUMS), "".join(sums))
    return len(line)


def import_session(store: StateStore, path: str | Path, *, name: str | None = None) -> str:
    """Creates a session from a file that `export_session` wrote: all of it, or nothing.

    Snapshots get new ids; messages keep theirs, so that a framework's history is recognised.

    Args:
        store: Where it goes.
        path: The file.
        name: Its new name; by default the one it had.

    Returns:
        The session's name.

    Raises:
        SessionError: if a session of that name exists.
        StateError: if a state is damaged or does not belong to its turn.
        StoreError: if the file cannot be read, is something else, is damaged, or was written by a later version; or if
            the store cannot be written.
    """
    manifest, blobs = _export(Path(path))
    name = manifest.name if name is None else name
    line = _line(manifest, blobs, name)
    if store.session(name) is not None:
        raise taken(name)
    try:
        store.add_line(name, line, expected=None)
    except ConflictError as error:
        raise taken(name) from error
    return name


def exported_name(path: str | Path) -> str:
    """What the session in a file is called; the errors are those of `import_session` that concern the file."""
    return _export(Path(path))[0].name


def _export(path: Path) -> tuple[Manifest, list[bytes]]:
    """What a file says of its session, and the states of its turns."""
    with _reading(path) as archive:
        parts = _parts(archive, path)
        manifest = _manifest(parts, path)
        expected = {MANIFEST, *map(_state_part, range(len(manifest.turns)))}
        if parts.keys() != expected:
            odd = sorted(parts.keys() ^ expected)[:3]
            raise _damaged(path, f"its manifest has {len(manifest.turns)} turns, but {', '.join(odd)} differ")
    return manifest, [parts[_state_part(number)] for number in range(len(manifest.turns))]


def _line(manifest: Manifest, blobs: list[bytes], name: str) -> list[Snapshot]:
    """The snapshots of a new session."""
    states = _States()
    line: list[Snapshot] = []
    for turn, blob in zip(manifest.turns, blobs, strict=True):
        states.check(blob, turn.fingerprint, turn=turn.turn)
        parent = line[-1].id if line else None
        line.append(turn.to_snapshot(id=uuid.uuid4().hex, parent=parent, session=name, state=blob))
    return line


class _States:
    """Sees to it that states are sound, belong to their turns, and have one shape under one fingerprint."""

    def __init__(self) -> None:
        self._shapes: dict[str, list[int]] = {}

    def check(self, data: bytes, fingerprint: str, *, turn: int) -> None:
        import torch  # takes seconds, which other uses of a store need not wait for

        from deltamem_agents.state import MemoryState

        try:
            tensor = MemoryState.from_bytes(data, fingerprint=fingerprint).tensor
        except FingerprintError as error:
            raise StateError(f"the state of turn {turn} is not that turn's: {error}") from error
        except StateError as error:
            raise StateError(f"the state of turn {turn} is unusable: {error}") from error
        shape = list(tensor.shape)
        expected = self._shapes.setdefault(fingerprint, [1, *shape[1:]])
        if shape != expected or not torch.isfinite(tensor).all():
            raise StateError(
                f"the state of turn {turn} has shape {shape}, expected {expected} and finite numbers only: "
                "the session cannot go on from it; use another export"
            )


def _state_part(number: int) -> str:
    return f"states/{number:06}.safetensors"


def _parts(archive: zipfile.ZipFile, path: Path) -> dict[str, bytes]:
    """What the archive holds, read and compared with its checksums.

    Nothing in an export is compressed, so nothing in it is larger than the file: archives that unfold are refused.
    """
    infos = archive.infolist()
    room = path.stat().st_size
    for info in infos:
        room -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise _damaged(path, f"{info.filename} is compressed or encrypted, which exports never are")
        if room < 0:
            raise _damaged(path, "its parts claim to be larger than the file")
    if len({info.filename for info in infos}) < len(infos) or SUMS not in archive.namelist():
        raise _damaged(path, f"expected each part once, and {SUMS} among them")
    parts = {info.filename: archive.read(info) for info in infos}
    sums = parts.pop(SUMS).decode()
    listed = {found[2]: found[1] for line in sums.splitlines() if (found := _SUM.fullmatch(line))}
    wrong = [part for part, data in parts.items() if listed.pop(part, None) != hashlib.sha256(data).hexdigest()]
    if wrong or listed:
        raise _damaged(path, f"the checksums of {', '.join(sorted({*wrong, *listed})[:3])} do not match")
    return parts


def _manifest(parts: dict[str, bytes], path: Path) -> Manifest:
    data = parts.get(MANIFEST, b"")
    found = format_of(data)
    if found is not None and found > FORMAT:
        raise StoreError(
            f"{path} has format {found}, expected at most {FORMAT}: a later deltamem-agents wrote it; "
            "upgrade the package"
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"{MANIFEST} is not well formed: {where + ': ' if where else ''}{first['msg']}") from error


def _damaged(path: Path, found: str) -> StoreError:
    return StoreError(f"{path} is no sound export: {found}; expected what export_session wrote; export it again")


@contextmanager
def _reading(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}): check that it is there, and its permissions") from error
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, str(error)) from error


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path`, which takes its place when all is written."""
    made: str | None = None
    try:
        number, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)
        made = None
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error}): check its folder, permissions and disk") from error
    finally:
        if made is not None:
            Path(made).unlink(missing_ok=True)
