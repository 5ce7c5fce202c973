"""Exported sessions come back as they were, and files that are no sound export change nothing."""

import hashlib
import json
import resource
import signal
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from deltamem_agents.errors import DeltaMemError, SessionError, SessionNotFoundError, StateError, StoreError
from deltamem_agents.state import MemoryState
from deltamem_agents.store import MemoryStore, Snapshot, SQLStore, StateStore, export_session, import_session

Child = Callable[..., Snapshot]
Parts = dict[str, bytes]

FINGERPRINT = "model+adapter"


def state(*, rows: int = 1, heads: int = 2, fingerprint: str = FINGERPRINT) -> bytes:
    return MemoryState(torch.randn(rows, 2, heads, 4, 4)).to_bytes(fingerprint=fingerprint)


def infinite() -> bytes:
    """A state with the right checksum that nobody can go on from."""
    tensor = torch.full((1, 2, 2, 4, 4), torch.inf)
    found = hashlib.sha256(tensor.numpy().tobytes() + f"{tuple(tensor.shape)} {FINGERPRINT}".encode()).hexdigest()
    header = {"format": "1", "fingerprint": FINGERPRINT, "sha256": found}
    return save({"state": tensor}, metadata={"delta_mem_state": json.dumps(header)})


def talk(store: StateStore, child: Child, name: str = "alice") -> list[Snapshot]:
    """A session of two threads: a pruned start, a message without text, a key, a note, and a line that was left."""
    line: list[Snapshot] = []
    last: dict[str, Snapshot] = {}
    for number, thread in enumerate([name, name, "t", name, name]):
        parent = line[-1] if line else None
        turn = child(parent, name, "naïve 🐈\n", "y", thread=thread, before=last.get(thread), state=state())
        entries = tuple(replace(entry, message_id=f"m{number}{i}") for i, entry in enumerate(turn.entries))
        turn = replace(turn, entries=(replace(entries[0], written=False), entries[1]))
        if number == 1:
            turn = replace(turn, entries=(replace(turn.entries[0], text=None), turn.entries[1]))
        if number == 3:
            turn = replace(turn, key="k", note="a note", kind="absorb")
        line.append(turn)
        last[thread] = turn
    store.add_line(name, line[:4], expected=None)
    store.commit(name, child(line[0], name, "left", state=state()), expected=line[3].id)
    store.move_head(name, line[3].id, expected=store.log(name)[-1].id)
    store.commit(name, line[4], expected=line[3].id)
    store.prune(name, keep=4)
    return store.line(line[4].id)


def content(store: StateStore, name: str) -> list[Snapshot]:
    """The session's line with its states, but for ids."""
    info = store.session(name)
    assert info is not None
    assert info.head is not None
    line = [store.snapshot(turn.id) for turn in store.line(info.head, since=-1)]
    assert [turn.parent for turn in line] == [None, *(turn.id for turn in line[:-1])]
    return [replace(turn, id="", parent=None, session="") for turn in line]


@pytest.fixture
def source(child: Child) -> MemoryStore:
    store = MemoryStore()
    talk(store, child)
    return store


@pytest.fixture
def path(source: MemoryStore, tmp_path: Path) -> Path:
    export_session(source, "alice", tmp_path / "alice.zip")
    return tmp_path / "alice.zip"


def read(path: Path) -> Parts:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, parts: Parts, *, sums: bool = True, compression: int = zipfile.ZIP_STORED) -> None:
    """Writes an archive, with checksums that are right, unless they are to be left as they are."""
    if sums:
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items() if name != "SHA256SUMS"}
        parts = {**parts, "SHA256SUMS": "".join(f"{found}  {name}\n" for name, found in hashes.items()).encode()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def refused(path: Path, match: str, kind: type[DeltaMemError] = StoreError) -> None:
    with SQLStore("sqlite://") as store:
        with pytest.raises(kind, match=match):
            import_session(store, path)
        assert store.sessions() == []


# There and back


def test_a_session_comes_back_in_any_store(store: StateStore, source: MemoryStore, path: Path, child: Child) -> None:
    assert import_session(store, path) == "alice"
    assert content(store, "alice") == content(source, "alice")
    info = store.session("alice")
    assert info is not None
    assert info.head is not None
    head = store.snapshot(info.head)
    assert store.find("alice", ["m41", "m00"]) == {"m41": replace(head, state=b"")}
    assert store.absorbed(head.id, "k") == head.parent
    more = child(head, "alice", "and on", state=state())
    store.commit("alice", more, expected=head.id)
    assert export_session(store, "alice", path) == 5
    assert import_session(store, path, name="bob") == "bob"
    old, new = store.line(more.id), store.log("bob")
    assert not {turn.id for turn in old} & {turn.id for turn in new}
    assert content(store, "bob") == content(store, "alice")
    store.forget("alice")
    assert content(store, "bob")[-1].state == more.state


def test_the_same_session_is_the_same_file(source: MemoryStore, path: Path) -> None:
    before = path.read_bytes()
    assert export_session(source, "alice", path) == 4
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["alice.zip"]


def test_what_cannot_be_exported(source: MemoryStore, path: Path, child: Child) -> None:
    before = path.read_bytes()
    with pytest.raises(SessionNotFoundError, match="'bob'"):
        export_session(source, "bob", path)
    source.commit("bob", child(None, "bob", state=b"junk"), expected=None)
    with pytest.raises(StateError, match="the state of turn 1 is unusable: 4 bytes are not"):
        export_session(source, "bob", path)
    bob = source.session("bob")
    assert bob is not None
    source.move_head("bob", None, expected=bob.head)
    with pytest.raises(SessionError, match="'bob' has no head, hence nothing to export"):
        export_session(source, "bob", path)
    with pytest.raises(StoreError, match="cannot be written"):
        export_session(source, "alice", path / "below a file")
    with pytest.raises(StoreError, match="cannot be written"):
        export_session(source, "alice", path.parent)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["alice.zip"]


def test_an_export_that_runs_out_of_room_leaves_the_old_file(source: MemoryStore, path: Path) -> None:
    before = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            export_session(source, "alice", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["alice.zip"]


# Files that are no sound export


def test_a_name_in_use(source: MemoryStore, path: Path) -> None:
    before = content(source, "alice")
    with pytest.raises(SessionError, match="'alice' exists already"):
        import_session(source, path)
    head = source.session("alice")
    assert head is not None
    assert content(source, "alice") == before
    source.move_head("alice", None, expected=head.head)
    with pytest.raises(SessionError, match="'alice' exists already"):
        import_session(source, path)


def test_no_file_or_another_one(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.zip", "cannot be read")
    refused(tmp_path, "cannot be read")
    (tmp_path / "diary.txt").write_text("a diary")
    refused(tmp_path / "diary.txt", "is no sound export")
    write(tmp_path / "other.zip", {"readme.txt": b"x"}, sums=False)
    refused(tmp_path / "other.zip", "expected each part once, and SHA256SUMS among them")
    write(tmp_path / "summed.zip", {"readme.txt": b"x"})
    refused(tmp_path / "summed.zip", "manifest.json is not well formed")


def test_parts_that_were_changed_taken_away_or_added(path: Path) -> None:
    parts = read(path)
    for changed in (
        {**parts, "states/000001.safetensors": parts["states/000002.safetensors"]},
        {**parts, "manifest.json": parts["manifest.json"].replace(b"a note", b"no note")},
        {name: data for name, data in parts.items() if name != "states/000003.safetensors"},
        {**parts, "states/000009.safetensors": b"more"},
        {**parts, "SHA256SUMS": parts["SHA256SUMS"] + b"junk\n" + b"0" * 64 + b"  x\n"},
    ):
        write(path, changed, sums=False)
        refused(path, "the checksums of .* do not match")
    write(path, {**parts, "extra": b"x"})
    refused(path, "its manifest has 4 turns, but extra differ")
    write(path, {name: data for name, data in parts.items() if name != "states/000003.safetensors"})
    refused(path, "its manifest has 4 turns, but states/000003.safetensors differ")


def test_manifests_that_make_no_sense(path: Path) -> None:
    parts = read(path)

    def changed(change: Callable[[dict[str, object], list[dict[str, object]]], object]) -> None:
        manifest = json.loads(parts["manifest.json"])
        change(manifest, manifest["turns"])
        write(path, {**parts, "manifest.json": json.dumps(manifest).encode()})

    for change, match in [
        (lambda m, t: m.update(format=2, turns="as later versions keep it"), "has format 2, expected at most 1"),
        (lambda m, t: m.update(format="1"), "manifest.json is not well formed: format"),
        (lambda m, t: m.update(name=""), "not well formed: name"),
        (lambda m, t: m.update(more=1), "not well formed: more"),
        (lambda m, t: m.update(turns=[]), "not well formed: turns"),
        (lambda m, t: t[1].update(turn=7), "is turn 7"),
        (lambda m, t: t[1].update(messages=2**31), "not well formed: turns.1.messages"),
        (lambda m, t: t[1].update(messages=-1), "not well formed: turns.1.messages"),
        (lambda m, t: t[3].update(thread_messages=3), "message 1 of thread 'alice'"),
        (lambda m, t: t[0].update(turn=0), "starts a line at turn 0"),
        (lambda m, t: t[0].update(kind="dream"), "not well formed: turns.0.kind"),
        (lambda m, t: t[0].update(created_at="2024-01-01T00:00:00"), "not well formed: turns.0.created_at"),
        (lambda m, t: t[0].update(created_at="2024-01-01T00:00:00+01:00"), "expected a time in UTC"),
        (lambda m, t: t[0].update(created_at=5), "not well formed: turns.0.created_at"),
        (lambda m, t: t[3]["entries"][0].update(text="no JSON"), r"not well formed: turns\.3\.entries\.0\.text"),
        (lambda m, t: t[3]["entries"][0].update(text="[]"), "expected a message as a JSON object"),
        (lambda m, t: t[3]["entries"][0].update(text="[" * 100_000), r"not well formed: turns\.3\.entries\.0\.text"),
        (lambda m, t: t[3]["entries"][0].update(written=1), "not well formed"),
    ]:
        changed(change)
        refused(path, match)
    for bad in (b"", b"{", b"[" * 100_000, b"\xff", b'{"format": 1e999}', b"null"):
        write(path, {**parts, "manifest.json": bad})
        refused(path, "manifest.json is not well formed")


def test_states_that_are_none_or_another_turns(path: Path) -> None:
    parts = read(path)
    data = MemoryState(torch.ones(1, 2, 2, 4, 4)).to_bytes(fingerprint=FINGERPRINT)
    for bad, match in [
        (b"junk", "the state of turn 3 is unusable: 4 bytes are not a delta-mem state"),
        (data[:-1], "the state of turn 3 is unusable"),
        (data[:-1] + b"\x7e", "the state of turn 3 is unusable: state is damaged"),
        (state(fingerprint="another"), "the state of turn 3 is not that turn's: .*'another'"),
        (state(heads=3), r"the state of turn 3 has shape \[1, 2, 3, 4, 4\], expected \[1, 2, 2, 4, 4\]"),
        (infinite(), "finite numbers only"),
        (state(rows=2), r"the state of turn 3 has shape \[2, 2, 2, 4, 4\]"),
    ]:
        write(path, {**parts, "states/000001.safetensors": bad})
        refused(path, match, StateError)


def test_archives_that_unfold(path: Path) -> None:
    parts = read(path)
    write(path, {**parts, "states/000001.safetensors": b"\0" * 50_000_000}, compression=zipfile.ZIP_DEFLATED)
    refused(path, "is compressed or encrypted")
    write(path, parts, sums=False)
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.infolist()[0]
        archive.filelist += [first] * 50  # many names for the same bytes
        archive.writestr("last", b"")
    refused(path, "larger than the file")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)  # the fixtures stay as they are
@given(st.data())
def test_no_damage_does_harm(source: MemoryStore, path: Path, data: st.DataObject) -> None:
    sound = path.read_bytes()
    damaged = bytearray(sound)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(sound) - 1)) :]
    for _ in range(data.draw(st.integers(1, 3))):
        if damaged:
            position = data.draw(st.integers(-min(len(damaged), 600), len(damaged) - 1))  # the directory is at the end
            damaged[position] = data.draw(st.integers(0, 255))
    file = path.with_name("damaged.zip")
    file.write_bytes(damaged)
    with MemoryStore() as store:
        try:
            import_session(store, file)
        except DeltaMemError:
            assert store.sessions() == []
        else:  # the damage was to nothing that counts, such as an archive's times
            assert content(store, "alice") == content(source, "alice")
