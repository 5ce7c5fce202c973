"""The contract of `StateStore`, once for every implementation: commits and lines, racing and closing."""

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

import deltamem_agents.store as package
from deltamem_agents.errors import ConflictError, SessionError, StoreError
from deltamem_agents.store import MemoryStore, Snapshot, SQLStore, StateStore, open_store
from tests.store.conftest import Child, bare, grow


def test_exports_are_sorted_and_importable() -> None:
    assert package.__all__ == sorted(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)


def test_a_commit_is_read_back_as_it_was(store: StateStore, child: Child) -> None:
    fields: dict[str, object] = {"kind": "absorb", "thread": "t", "key": "a key", "note": "a note"}
    turn = child(None, "alice", "hello", "naïve 🐈 \x00", state=bytes(range(256)) * 100, **fields)
    turn = replace(turn, entries=(*turn.entries[:1], replace(turn.entries[1], message_id="m", written=False)))
    store.commit("alice", turn, expected=None)
    assert store.snapshot(turn.id) == turn
    assert store.line(turn.id) == bare([turn])
    info = store.session("alice")
    assert info is not None
    assert (info.name, info.head, info.fingerprint) == ("alice", turn.id, turn.fingerprint)
    assert (info.turns, info.messages, info.state_bytes) == (1, 2, 25600)
    assert info.created_at == info.updated_at
    assert info.created_at.tzinfo is UTC


def test_no_text_no_tokens_no_entries(store: StateStore, child: Child) -> None:
    first = child(None, "alice", "x")
    first = replace(first, entries=(replace(first.entries[0], text=None, tokens=0),))
    second = child(first, "alice", state=b"")
    store.commit("alice", first, expected=None)
    store.commit("alice", second, expected=first.id)
    assert store.line(second.id) == bare([first, second])
    assert store.snapshot(second.id) == second


def test_times_come_back_in_utc(store: StateStore, child: Child) -> None:
    time = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=-5)))
    turn = child(None, "alice", created_at=time)
    store.commit("alice", turn, expected=None)
    assert store.snapshot(turn.id).created_at == time
    assert store.snapshot(turn.id).created_at.tzinfo is UTC


def test_line_since(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 5)
    head = line[-1].id
    assert store.line(head) == bare(line)
    assert store.line(head, since=6) == bare(line[3:])
    assert store.line(head, since=7) == bare(line[3:])
    assert store.line(head, since=10) == []
    assert store.line(line[1].id) == bare(line[:2])


def test_unknown_snapshots(store: StateStore) -> None:
    for read in (
        store.snapshot,
        store.line,
        lambda id: store.thread(id, "t", last=0),
        lambda id: store.thread(id, "t", last=2),
        lambda id: store.absorbed(id, "k"),
    ):
        with pytest.raises(StoreError, match="'nowhere' is not in this store"):
            read("nowhere")


def test_sessions_are_sorted_by_code_point_and_filtered_by_prefix(store: StateStore, child: Child) -> None:
    names = ["a%", "a_", "ab", "Ab", "é", "日本", "🐈", "a'; DROP TABLE deltamem_sessions; --", 'a"']
    for name in names:
        grow(store, child, name, 1)
    assert [info.name for info in store.sessions()] == sorted(names)
    assert [info.name for info in store.sessions(prefix="a")] == sorted(name for name in names if name[0] == "a")
    assert [info.name for info in store.sessions(prefix="a%")] == ["a%"]
    assert [info.name for info in store.sessions(prefix="a_")] == ["a_"]
    assert [info.name for info in store.sessions(prefix="日")] == ["日本"]
    assert store.session("AB") is None


def test_sessions_come_in_pages_by_name(store: StateStore, child: Child) -> None:
    names = ["a", "a b", "B", "b", "b!", "b\ud7ff", "b\ue000", "b\U0010ffff", "b\U0010ffffx", "c", "ä"]
    for name in names:
        grow(store, child, name, 1)
    for size in (1, 2, 4, 99):
        pages = [store.sessions(limit=size)]
        while len(pages[-1]) == size:
            pages.append(store.sessions(after=pages[-1][-1].name, limit=size))
        assert [info.name for page in pages for info in page] == sorted(names)
    in_b = sorted(name for name in names if name[0] == "b")
    assert [info.name for info in store.sessions(prefix="b")] == in_b
    assert [info.name for info in store.sessions(prefix="b", after="b", limit=2)] == in_b[1:3]
    assert [info.name for info in store.sessions(prefix="b", after="ab")] == in_b
    assert [info.name for info in store.sessions(after="b\U0010ffffy")] == ["c", "ä"]
    for prefix in ("b\ud7ff", "b\U0010ffff", "\U0010ffff", "nobody"):
        found = [info.name for info in store.sessions(prefix=prefix)]
        assert found == sorted(name for name in names if name.startswith(prefix))
        assert store.count(prefix=prefix) == len(found)
    assert store.count() == len(store.sessions())
    for limit in (0, -1):
        with pytest.raises(SessionError, match=f"limit is {limit}: expected at least 1"):
            store.sessions(limit=limit)


def test_the_wrong_head_is_a_conflict_that_changes_nothing(store: StateStore, child: Child) -> None:
    first, second = grow(store, child, "alice", 2)
    late = child(first, "alice", "late")
    with pytest.raises(ConflictError, match=f"head '{second.id}', expected '{first.id}'"):
        store.commit("alice", late, expected=first.id)
    with pytest.raises(ConflictError, match="expected None"):
        store.commit("alice", child(None, "alice"), expected=None)
    with pytest.raises(ConflictError, match="head None, expected 'x'"):
        store.commit("bob", child(None, "bob"), expected="x")
    with pytest.raises(ConflictError):
        store.move_head("alice", None, expected=first.id)
    assert store.line(second.id) == bare([first, second])
    assert [info.name for info in store.sessions()] == ["alice"]
    with pytest.raises(StoreError):
        store.snapshot(late.id)


def test_a_snapshot_must_continue_its_parent(store: StateStore, child: Child) -> None:
    (first,) = grow(store, child, "alice", 1)
    good = child(first, "alice", "x")
    for bad, message in [
        (replace(good, parent="nowhere"), "unknown parent 'nowhere'"),
        (replace(good, turn=3), "is turn 3 .* parent .* is turn 1"),
        (replace(good, messages=4), "starts at message 3"),
        (replace(good, parent=None, messages=0), "starts a line"),
        (replace(good, parent=None, turn=0), "starts a line"),
        (replace(good, thread_messages=2), "message 1 of thread 'alice', but .* has 2 of that thread"),
        (replace(good, thread="t"), "message 2 of thread 't', but .* has 0 of that thread"),
        (replace(good, thread_messages=4), "message 3 of thread 'alice' and at message 2 of its line"),
        (replace(good, thread_messages=0), "message -1 of thread 'alice'"),
        (replace(good, session="bob"), "belongs to session 'bob'"),
        (replace(good, created_at=datetime(2024, 1, 1)), "no time zone"),
        (replace(good, id=first.id), "already"),
    ]:
        with pytest.raises(StoreError, match=message):
            store.commit("alice", bad, expected=first.id)
    store.commit("alice", good, expected=first.id)


def test_another_reply_starts_a_new_line_and_the_old_one_stays(store: StateStore, child: Child) -> None:
    first, second = grow(store, child, "alice", 2)
    again = child(first, "alice", "another")
    store.commit("alice", again, expected=second.id)
    assert store.line(again.id) == bare([first, again])
    assert store.line(second.id) == bare([first, second])
    store.move_head("alice", second.id, expected=again.id)  # redo


def test_the_order_of_a_line_never_depends_on_the_clock(store: StateStore, child: Child) -> None:
    times = [datetime(2024, 1, day, tzinfo=UTC) for day in (5, 3, 4, 1)]
    line: list[Snapshot] = []
    for time in times:
        parent = line[-1] if line else None
        line.append(child(parent, "alice", "x", created_at=time))
        store.commit("alice", line[-1], expected=parent.id if parent else None)
    assert store.line(line[3].id) == store.thread(line[3].id, "alice", last=9) == bare(line)
    assert store.log("alice") == bare([line[3], line[1], line[2], line[0]])
    assert store.prune("alice", keep=2) == 2
    assert store.line(line[3].id) == bare([replace(line[2], parent=None), line[3]])


def test_a_session_deleted_between_read_and_commit(store: StateStore, child: Child) -> None:
    (first,) = grow(store, child, "alice", 1)
    turn = child(first, "alice", "x")
    store.forget("alice")
    with pytest.raises(ConflictError, match=f"head None, expected '{first.id}'"):
        store.commit("alice", turn, expected=first.id)
    with pytest.raises(StoreError, match="unknown parent") as caught:
        store.commit("alice", turn, expected=None)
    assert not isinstance(caught.value, ConflictError)
    assert store.sessions() == []


def test_add_line(store: StateStore, child: Child) -> None:
    first = child(None, "alice", "x", turn=7, messages=20, thread_messages=9, thread_tokens=99)
    second = child(first, "alice", "y", thread="t")
    third = child(second, "alice", "z", before=first)
    store.add_line("alice", [first, second, third], expected=None)
    assert store.line(third.id) == bare([first, second, third])
    assert store.snapshot(second.id) == second
    fourth = child(third, "alice", "t", thread="u", before=None, thread_messages=20)  # 19 of them may have been its own
    store.add_line("alice", [fourth], expected=third.id)
    assert store.line(fourth.id)[3:] == bare([fourth])
    again = [child(first, "alice", "other")]
    store.add_line("alice", again, expected=fourth.id)
    assert store.line(again[0].id) == bare([first, *again])


def test_add_line_is_all_or_nothing(store: StateStore, child: Child) -> None:
    (old,) = grow(store, child, "alice", 1)
    first = child(old, "alice", "x")
    second = child(first, "alice", "y")
    third = child(second, "alice", "z")
    for bad, message in [
        ([], "no snapshots in this line"),
        ([first, third], f"has parent '{second.id}', but comes after '{first.id}'"),
        ([first, replace(second, parent=None), third], "has parent None"),
        ([first, second, replace(third, thread_messages=2)], "message 1 of thread 'alice', but .* has 4 of that"),
        ([first, second, replace(third, thread="t")], "message 4 of thread 't', but .* has 0 of that"),
        ([first, second, replace(third, messages=9)], "starts at message 8"),
        ([first, second, replace(third, turn=9)], "is turn 9"),
        ([first, second, replace(third, id=first.id)], f"'{first.id}' is in this store already"),
        ([first, second, replace(third, id=old.id)], f"'{old.id}' is in this store already"),
        ([first, second, replace(third, session="bob")], "belongs to session 'bob'"),
        ([replace(first, parent="nowhere"), second], "unknown parent 'nowhere'"),
    ]:
        with pytest.raises(StoreError, match=message) as caught:
            store.add_line("alice", bad, expected=old.id)
        assert not isinstance(caught.value, ConflictError)
    with pytest.raises(ConflictError):
        store.add_line("alice", [first, second, third], expected=None)
    assert store.log("alice") == bare([old])
    store.add_line("alice", [first, second, third], expected=old.id)
    assert store.line(third.id) == bare([old, first, second, third])


def test_threads_race_and_one_wins_each_round(store: StateStore, child: Child) -> None:
    (head,) = grow(store, child, "alice", 1)
    for _ in range(10):
        turns = [child(head, "alice", "x") for _ in range(4)]
        won: list[Snapshot] = []
        ready = threading.Barrier(len(turns))

        def race(turn: Snapshot, old: str, won: list[Snapshot] = won, ready: threading.Barrier = ready) -> None:
            ready.wait()
            try:
                store.commit("alice", turn, expected=old)
            except ConflictError:
                return
            won.append(turn)

        threads = [threading.Thread(target=race, args=(turn, head.id)) for turn in turns]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (head,) = won
    assert len(store.line(head.id)) == 11


def test_a_closed_store_refuses(store: StateStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.sessions()


def test_open_store(tmp_path: Path) -> None:
    memory = MemoryStore()
    assert open_store(memory) is memory
    with pytest.raises(StoreError, match="store is 5"):
        open_store(5)  # type: ignore[arg-type]
    assert isinstance(open_store("memory"), MemoryStore)
    assert isinstance(open_store(":memory:"), MemoryStore)
    for folder in "ad":
        (tmp_path / folder).mkdir()
    for spec in (tmp_path / "a" / "b.db", str(tmp_path / "c.db"), f"sqlite:///{tmp_path}/d/e.db", "sqlite://"):
        with open_store(spec) as opened:
            assert isinstance(opened, SQLStore)
            assert opened.sessions() == []
    assert (tmp_path / "a" / "b.db").exists()
    assert (tmp_path / "d" / "e.db").exists()
