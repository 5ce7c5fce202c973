"""The contract of `StateStore`, once for every implementation."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deltamem_agents.store as package
from deltamem_agents.errors import ConflictError, DeltaMemError, SessionError, SessionNotFoundError, StoreError
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


def texts(store: StateStore, head: str) -> list[bool]:
    """Which messages of the line still have text; their token counts stay."""
    entries = [entry for snapshot in store.line(head) for entry in snapshot.entries]
    assert sum(entry.tokens for entry in entries) == store.snapshot(head).tokens
    return [entry.text is not None for entry in entries]


def test_exports_are_sorted_and_importable() -> None:
    assert package.__all__ == sorted(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)


# Commits and reads


def test_a_commit_is_read_back_as_it_was(store: StateStore, child: Child) -> None:
    turn = child(None, "alice", "hello", "naïve 🐈 \x00", state=bytes(range(256)) * 100, kind="absorb", thread="t")
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
    assert store.boundary(second.id, 1) == second


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


def test_boundary(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 3)
    head = line[-1].id
    assert store.boundary(head, 0) is None
    assert store.boundary(head, 1) is None
    assert store.boundary(head, 2) == line[0]
    assert store.boundary(head, 5) == line[1]
    assert store.boundary(head, 6) == line[2]
    assert store.boundary(head, 99) == line[2]


def test_unknown_snapshots(store: StateStore) -> None:
    for read in (store.snapshot, store.line, lambda id: store.boundary(id, 3)):
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


# Dropping text


def test_dropped_text_is_gone_and_the_rest_stays(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 3)
    last = child(line[-1], "alice", "x", "y")
    store.commit("alice", last, expected=line[-1].id, drop_text_before=3)
    assert texts(store, last.id) == [False] * 3 + [True] * 5
    dropped = store.snapshot(line[0].id)
    assert dropped.state == line[0].state
    assert [entry.digest for entry in dropped.entries] == [entry.digest for entry in line[0].entries]
    assert store.snapshot(last.id) == last


def test_a_commit_can_drop_its_own_text(store: StateStore, child: Child) -> None:
    turn = child(None, "alice", "a", "b")
    store.commit("alice", turn, expected=None, drop_text_before=2)
    assert texts(store, turn.id) == [False, False]


def test_text_that_another_line_holds_is_kept_until_it_does_no_more(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 4)
    store.fork("alice", "bob", at=line[1].id)
    bobs = grow(store, child, "bob", 1, parent=line[1])
    last = child(line[-1], "alice", "x")
    store.commit("alice", last, expected=line[-1].id, drop_text_before=9)
    assert texts(store, last.id) == [True] * 4 + [False] * 5
    assert texts(store, bobs[-1].id) == [True] * 6
    store.forget("bob")
    next_one = child(last, "alice", "y")
    store.commit("alice", next_one, expected=last.id, drop_text_before=9)
    assert texts(store, next_one.id) == [False] * 9 + [True]


def test_text_on_a_branch_that_nobody_is_on_does_not_hold_the_line(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 3)
    store.move_head("alice", line[0].id, expected=line[2].id)
    again = child(line[0], "alice", "x")
    store.commit("alice", again, expected=line[0].id, drop_text_before=2)
    assert texts(store, again.id) == [False, False, True]


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


def test_prune(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 6)
    store.move_head("alice", line[4].id, expected=line[5].id)
    assert store.prune("alice", keep=2) == 4
    head = line[4].id
    assert store.line(head) == bare([replace(line[3], parent=None), line[4]])
    assert store.boundary(head, 9) == replace(line[3], parent=None)
    with pytest.raises(StoreError, match=f"message 7 of '{head}' was pruned: the line is kept from message 6"):
        store.boundary(head, 7)
    assert store.prune("alice", keep=2) == 0
    info = store.session("alice")
    assert info is not None
    assert (info.turns, info.messages) == (5, 10)
    grow(store, child, "alice", 1, parent=line[4])


def test_prune_keeps_what_others_need(store: StateStore, child: Child) -> None:
    line = grow(store, child, "alice", 6)
    store.fork("alice", "bob", at=line[2].id)
    assert store.prune("alice", keep=1) == 2
    assert store.line(line[2].id) == bare(line[:3])
    assert store.line(line[5].id) == bare([replace(line[5], parent=None)])
    store.move_head("bob", None, expected=line[2].id)
    assert store.prune("alice", keep=1) == 3


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
    for spec in (tmp_path / "a" / "b.db", str(tmp_path / "c.db"), f"sqlite:///{tmp_path}/d/e.db", "sqlite://"):
        with open_store(spec) as opened:
            assert isinstance(opened, SQLStore)
            assert opened.sessions() == []
    assert (tmp_path / "a" / "b.db").exists()
    assert (tmp_path / "d" / "e.db").exists()


# Every implementation is the same function of its history

NAMES = ["alice", "bob", "carol"]
STEPS = st.tuples(
    st.sampled_from(["commit", "commit", "commit", "branch", "move", "fork", "fork at", "forget", "prune"]),
    st.sampled_from(NAMES),
    st.integers(0, 20),
    st.integers(0, 20),
)


def step(
    store: StateStore, action: str, name: str, turn: Snapshot, target: str | None, number: int
) -> int | type[DeltaMemError] | None:
    """One step of a random history; the result, or the type of the error."""
    info = store.session(name)
    head = info.head if info else None
    other = NAMES[number % len(NAMES)]
    try:
        match action:
            case "commit" | "branch":
                store.commit(name, turn, expected=head, drop_text_before=max(0, turn.messages - number))
            case "move":
                store.move_head(name, target, expected=head)
            case "fork":
                store.fork(name, other)
            case "fork at":
                store.fork(name, other, at=target)
            case "forget":
                store.forget(name)
            case _:
                return store.prune(name, keep=number % 6)
    except DeltaMemError as error:
        return type(error)
    return None


def visible(store: StateStore, ids: list[str]) -> object:
    """All that can be seen, but for times and who inherited what."""
    sessions, lines = [], []
    names = {info.name: info.head for info in store.sessions()}
    for info in store.sessions():
        sessions.append(replace(info, created_at=datetime.min, updated_at=datetime.min))
        if info.head:
            line = store.line(info.head)
            lines.append([replace(turn, session="") for turn in line])
            for position in {turn.messages for turn in line} | {turn.start for turn in line[1:]}:
                found = store.boundary(info.head, position)
                assert found is not None
                lines.append([replace(found, session="")])
    left = {}
    for id in ids:
        try:
            left[id] = store.snapshot(id)
        except StoreError:
            continue
        assert left[id].session in names  # an owner that exists, so that nothing stays forever
    return sessions, lines, {id: replace(turn, session="") for id, turn in left.items()}


@settings(max_examples=30, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=40))
def test_stores_agree_on_random_histories(child: Child, steps: list[tuple[str, str, int, int]]) -> None:
    with MemoryStore() as memory, SQLStore("sqlite://") as sql:
        made: list[Snapshot] = []
        for action, name, pick, number in steps:
            info = memory.session(name)
            head = memory.snapshot(info.head) if info and info.head else None
            if action == "branch":
                on_line = memory.line(head.id) if head else []
                head = on_line[pick % len(on_line)] if on_line else None
            turn = child(head, name, *(f"{name} {i}" for i in range(pick % 3)))
            target = made[pick % len(made)].id if made and pick else None
            assert step(memory, action, name, turn, target, number) == step(sql, action, name, turn, target, number)
            made.append(turn)
        ids = [turn.id for turn in made]
        assert visible(memory, ids) == visible(sql, ids)
        for name in NAMES:
            if memory.session(name):
                memory.forget(name)
                sql.forget(name)
        assert visible(memory, ids) == visible(sql, ids) == ([], [], {})
