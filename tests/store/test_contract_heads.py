"""The contract of `StateStore`: heads that move, forks, and what is deleted."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from deltamem_agents.errors import SessionError, SessionNotFoundError, StoreError
from deltamem_agents.store import StateStore
from tests.store.conftest import Child, bare, grow


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
