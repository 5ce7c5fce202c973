"""The contract of `StateStore`, once for every implementation."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

import deltamem_agents.store as package
from deltamem_agents.errors import ConflictError, SessionError, SessionNotFoundError, StoreError
from deltamem_agents.store import MemoryStore, Snapshot, SQLStore, StateStore, open_store

Child = Callable[..., Snapshot]


def grow(store: StateStore, child: Child, name: str, turns: int, *, parent: Snapshot | None = None) -> list[Snapshot]:
    """Commits turns of two messages each."""
    line: list[Snapshot] = []
    for _ in range(turns):
        start = parent.messages if parent else 0
        turn = child(parent, name, f"{name} says {start}", f"reply {start + 1}")
        info = store.session(name)
        store.commit(name, turn, expected=info.head if info else None)
        line.append(turn)
        parent = turn
    return line


def bare(snapshots: list[Snapshot]) -> list[Snapshot]:
    return [replace(snapshot, state=b"") for snapshot in snapshots]


def test_exports_are_sorted_and_importable() -> None:
    assert package.__all__ == sorted(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)


# Commits and reads


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


# Adding lines


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


# Threads, messages, keys and the log


def test_thread_lists_the_newest_turns_that_hold_so_many_messages(store: StateStore, child: Child) -> None:
    sizes = [("a", 2), ("b", 2), ("a", 1), ("b", 1), ("a", 0), ("a", 3), ("b", 2), ("a", 0)]
    line: list[Snapshot] = []
    last: dict[str, Snapshot] = {}
    for thread, size in sizes:
        parent = line[-1] if line else None
        turn = child(parent, "alice", *"xyz"[:size], thread=thread, before=last.get(thread))
        store.commit("alice", turn, expected=parent.id if parent else None)
        line.append(turn)
        last[thread] = turn
    a, b, head = [line[i] for i in (0, 2, 4, 5, 7)], [line[i] for i in (1, 3, 6)], line[-1].id
    for wanted, expected in {0: [], 1: a[3:], 3: a[3:], 4: a[1:], 5: a, 99: a}.items():
        assert store.thread(head, "a", last=wanted) == bare(expected)
    for wanted, expected in {-1: [], 1: b[2:], 2: b[2:], 3: b[1:], 4: b, 99: b}.items():
        assert store.thread(head, "b", last=wanted) == bare(expected)
    assert store.thread(line[3].id, "a", last=1) == bare(a[1:2])
    assert store.thread(head, "c", last=9) == []
    store.prune("alice", keep=4)
    assert store.thread(head, "b", last=99) == bare(b[2:])
    assert store.line(head)[-1].thread_start == 6


def test_threads_of_other_lines_are_not_found(store: StateStore, child: Child) -> None:
    first, second = grow(store, child, "alice", 2)
    store.fork("alice", "bob", at=first.id)
    bobs = child(first, "bob", "x", thread="alice", before=first)
    store.commit("bob", bobs, expected=first.id)
    assert store.thread(bobs.id, "alice", last=9) == bare([first, bobs])
    assert store.thread(second.id, "alice", last=9) == bare([first, second])


def test_find(store: StateStore, child: Child) -> None:
    def turn(parent: Snapshot | None, name: str, *ids: str | None, **changes: object) -> Snapshot:
        made = child(parent, name, *map(str, ids), **changes)
        made = replace(made, entries=tuple(replace(e, message_id=i) for e, i in zip(made.entries, ids, strict=True)))
        info = store.session(name)
        store.commit(name, made, expected=info.head if info else None)
        return made

    early, late = datetime(2020, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)
    first = turn(None, "alice", "1", "2", None)
    left = turn(first, "alice", "3", "4", "5", created_at=late)
    later = turn(first, "alice", "4", created_at=early)
    head = turn(first, "alice", "3", "7", "7")
    turn(None, "bob", "1", "8")
    found = store.find("alice", ["1", "2", "3", "4", "5", "6", "7", "8", "'; --", ""])
    first, left, later, head = bare([first, left, later, head])
    assert found == {"1": first, "2": first, "3": head, "4": left, "5": left, "7": head}
    assert store.find("alice", {"2"}) == {"2": first}
    assert store.find("alice", []) == {}
    assert store.find("nobody", ["1"]) == {}
    store.fork("alice", "carol", at=first.id)
    assert store.find("carol", ["1", "3"]) == {"1": first}
    store.move_head("alice", later.id, expected=head.id)
    assert store.find("alice", ["4", "3"]) == {"4": later, "3": left}
    many = [f"id {number}" for number in range(40_000)]
    assert store.find("alice", [*many, "2"]) == {"2": first}


def test_of_many_messages_with_one_id_the_newest_on_the_line_is_found(store: StateStore, child: Child) -> None:
    line: list[Snapshot] = []
    for number in range(3):
        made = child(line[-1] if line else None, "alice", "x", created_at=datetime(2024, 1, 9 - number, tzinfo=UTC))
        line.append(replace(made, entries=(replace(made.entries[0], message_id="m"),)))
    store.add_line("alice", line, expected=None)
    assert store.find("alice", ["m"]) == {"m": bare(line)[2]}


def test_ids_that_everybody_uses_are_found_among_the_own(store: StateStore, child: Child) -> None:
    def turn(parent: Snapshot | None, name: str, count: int, **changes: object) -> Snapshot:
        made = child(parent, name, *("x" * count), **changes)
        return replace(made, entries=tuple(replace(e, message_id=f"{i % 2}") for i, e in enumerate(made.entries)))

    crowd = turn(None, "crowd", 1200)
    store.commit("crowd", crowd, expected=None)
    first = turn(None, "alice", 2)
    second = turn(first, "alice", 1)
    store.add_line("alice", [first, second], expected=None)
    assert store.find("alice", ["0", "1", "2"]) == {"0": bare([second])[0], "1": bare([first])[0]}
    store.fork("alice", "bob")
    assert store.find("bob", ["0"]) == {"0": bare([second])[0]}
    assert store.find("crowd", ["0", "1"]) == {"0": bare([crowd])[0], "1": bare([crowd])[0]}


def test_absorbed(store: StateStore, child: Child) -> None:
    (first,) = grow(store, child, "alice", 1)
    keyed = child(first, "alice", "x", key="k")
    again = child(keyed, "alice", "y", key="k")
    last = child(again, "alice", "z", key="other")
    store.add_line("alice", [keyed, again, last], expected=first.id)
    assert store.absorbed(last.id, "k") == again.id
    assert store.absorbed(keyed.id, "k") == keyed.id
    assert store.absorbed(first.id, "k") is None
    assert store.absorbed(last.id, "K") is None
    store.move_head("alice", first.id, expected=last.id)
    (bobs,) = grow(store, child, "bob", 1)
    assert store.absorbed(bobs.id, "k") is None


def test_log_holds_the_lines_that_were_left_too(store: StateStore, child: Child) -> None:
    first, second = grow(store, child, "alice", 2)
    again = child(first, "alice", "x", note="another reply")
    store.commit("alice", again, expected=second.id)
    store.fork("alice", "bob", at=first.id)
    (bobs,) = grow(store, child, "bob", 1, parent=first)
    assert store.log("alice") == bare([first, second, again])
    assert store.log("bob") == bare([first, bobs])
    with pytest.raises(SessionNotFoundError, match="'nobody'"):
        store.log("nobody")
    store.forget("bob")
    store.move_head("alice", None, expected=again.id)
    assert store.log("alice") == bare([first, second, again])


# Heads


def test_move_head_back_to_the_start_and_on_again(store: StateStore, child: Child) -> None:
    first, second = grow(store, child, "alice", 2)
    store.move_head("alice", first.id, expected=second.id)
    store.move_head("alice", None, expected=first.id)
    info = store.session("alice")
    assert info is not None
    assert (info.head, info.fingerprint, info.turns, info.messages, info.state_bytes) == (None, None, 0, 0, 0)
    assert info.updated_at >= info.created_at
    fresh = child(None, "alice", "x")
    store.commit("alice", fresh, expected=None)
    assert store.line(fresh.id) == bare([fresh])


def test_move_head_refuses_what_is_not_its_own(store: StateStore, child: Child) -> None:
    (mine,) = grow(store, child, "alice", 1)
    (theirs,) = grow(store, child, "bob", 1)
    with pytest.raises(SessionError, match=f"'{theirs.id}' is not one of session 'alice'"):
        store.move_head("alice", theirs.id, expected=mine.id)
    with pytest.raises(StoreError, match="'nowhere'"):
        store.move_head("alice", "nowhere", expected=mine.id)
    with pytest.raises(SessionNotFoundError, match="'carol'"):
        store.move_head("carol", mine.id, expected=None)


def test_fork(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 3)
    store.fork("alice", "bob")
    store.fork("alice", "carol", at=line[0].id)
    bobs = grow(store, child, "bob", 1, parent=line[2])
    assert store.line(bobs[0].id) == bare([*line, *bobs])
    carol, alice = store.session("carol"), store.session("alice")
    assert carol is not None
    assert alice is not None
    assert (carol.head, carol.turns, alice.head) == (line[0].id, 1, line[2].id)
    store.move_head("bob", line[1].id, expected=bobs[0].id)  # made by alice, but on bob's line


def test_fork_refuses(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 2)
    grow(store, child, "bob", 1)
    store.move_head("alice", line[0].id, expected=line[1].id)
    with pytest.raises(SessionError, match="'bob' exists already"):
        store.fork("alice", "bob")
    with pytest.raises(SessionError, match="exists already"):
        store.fork("alice", "alice")
    with pytest.raises(SessionError, match="not one of session 'alice'"):
        store.fork("alice", "carol", at=line[1].id)
    with pytest.raises(SessionNotFoundError, match="'dave'"):
        store.fork("dave", "carol")
    assert len(store.sessions()) == 2


def test_fork_of_a_session_without_a_head(store: StateStore, child: Child) -> None:
    (turn,) = grow(store, child, "alice", 1)
    store.move_head("alice", None, expected=turn.id)
    store.fork("alice", "bob")
    grow(store, child, "bob", 1)


# Deleting


def test_through_lists_the_sessions_that_go_on_from_a_snapshot(store: StateStore, child: Child) -> None:
    first, second = grow(store, child, "alice", 2)
    store.fork("alice", "bob", at=first.id)
    assert store.through(first.id) == ["alice", "bob"]
    assert store.through(second.id) == ["alice"]
    assert store.through("nowhere") == []


def test_erase_deletes_what_was_left_and_all_that_continues_it(store: StateStore, child: Child) -> None:
    first, second, third = grow(store, child, "alice", 3)
    store.fork("alice", "bob", at=second.id)
    theirs = child(second, "bob", "text of bob")
    store.commit("bob", theirs, expected=second.id)
    with pytest.raises(SessionError, match=f"'{second.id}' cannot be deleted: the line of session 'alice'"):
        store.erase("alice", [second.id])
    store.move_head("alice", first.id, expected=third.id)
    with pytest.raises(SessionError, match="the line of session 'bob' goes through it"):
        store.erase("alice", [third.id, second.id])
    assert [turn.id for turn in store.log("alice")] == [first.id, second.id, third.id]  # nothing was changed
    store.move_head("bob", first.id, expected=theirs.id)
    assert store.erase("alice", [second.id]) == 3
    assert [turn.id for turn in store.log("alice")] == [first.id]
    assert [turn.id for turn in store.log("bob")] == [first.id]
    with pytest.raises(SessionError, match="'elsewhere' is not one of session 'alice'"):
        store.erase("alice", ["elsewhere"])
    with pytest.raises(SessionNotFoundError):
        store.erase("nobody", [])


def test_forget_deletes_what_nobody_else_needs(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 3)
    store.fork("alice", "bob", at=line[1].id)
    dead = child(line[0], "alice", "dead")
    store.commit("alice", dead, expected=line[2].id)
    store.forget("alice")
    assert store.session("alice") is None
    for gone in (line[2], dead):
        with pytest.raises(StoreError, match=gone.id):
            store.snapshot(gone.id)
    assert store.line(line[1].id) == [replace(turn, session="bob") for turn in bare(line[:2])]
    store.forget("bob")
    with pytest.raises(StoreError):
        store.snapshot(line[0].id)
    with pytest.raises(SessionNotFoundError, match="'bob'"):
        store.forget("bob")
    grow(store, child, "alice", 1)


def test_forget_leaves_others_branches_that_nobody_is_on(store: StateStore, child: Child) -> None:
    (first,) = grow(store, child, "alice", 1)
    store.fork("alice", "bob")
    (dead,) = grow(store, child, "bob", 1, parent=first)
    store.move_head("bob", None, expected=dead.id)
    store.forget("alice")
    assert store.snapshot(dead.id) == replace(dead, parent=None)
    store.move_head("bob", dead.id, expected=None)
    store.forget("bob")
    with pytest.raises(StoreError):
        store.snapshot(dead.id)


def test_prune_keeps_the_newest_of_the_line(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 6)
    assert store.prune("alice", keep=2) == 4
    head = line[5].id
    assert store.line(head) == bare([replace(line[4], parent=None), line[5]])
    assert store.prune("alice", keep=2) == 0
    info = store.session("alice")
    assert info is not None
    assert (info.turns, info.messages) == (6, 12)
    grow(store, child, "alice", 1, parent=line[5])


def test_prune_keeps_the_newest_of_the_lines_that_were_left(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 3)
    days = [datetime(2024, 1, day, tzinfo=UTC) for day in range(1, 6)]
    replies = []
    for day in (3, 1, 4, 0, 2):  # not in the order in which they were made: by time
        replies.append(child(line[1], "alice", "again", created_at=days[day]))
        info = store.session("alice")
        assert info is not None
        store.commit("alice", replies[-1], expected=info.head)
    store.move_head("alice", line[2].id, expected=replies[-1].id)
    assert store.prune("alice", keep=2) == 4
    assert store.log("alice") == bare([replies[0], replies[2], replace(line[1], parent=None), line[2]])
    assert store.line(replies[2].id) == bare([replace(line[1], parent=None), replies[2]])
    assert store.prune("alice", keep=1) == 2
    assert store.log("alice") == bare([replace(replies[2], parent=None), replace(line[2], parent=None)])
    store.move_head("alice", replies[2].id, expected=line[2].id)


def test_prune_keeps_what_others_need(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 6)
    store.fork("alice", "bob", at=line[2].id)
    assert store.prune("alice", keep=1) == 2
    assert store.line(line[2].id) == bare(line[:3])
    assert store.line(line[5].id) == bare([replace(line[5], parent=None)])
    store.move_head("bob", None, expected=line[2].id)
    assert store.prune("alice", keep=1) == 2


def test_prune_refuses(store: StateStore, child: Child) -> None:
    grow(store, child, "alice", 1)
    with pytest.raises(SessionError, match="cannot keep 0"):
        store.prune("alice", keep=0)
    with pytest.raises(SessionNotFoundError):
        store.prune("bob", keep=1)


# Threads and closing


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
