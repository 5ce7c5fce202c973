"""The contract of `StateStore`: threads, messages by their ids, keys, and the log."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from deltamem_agents.errors import SessionNotFoundError
from deltamem_agents.store import Snapshot, StateStore
from tests.store.conftest import Child, bare, grow


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
