"""Every implementation is the same function of its history: random ones, on two stores side by side."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltamem_agents.errors import DeltaMemError, StoreError
from deltamem_agents.store import MemoryStore, Snapshot, SQLStore, StateStore

Child = Callable[..., Snapshot]
Values = tuple[str, str, str, int, int]

NAMES = ["alice", "bob", "carol"]
THREADS = ["alice", "t", "u"]
IDS = [f"m{number}" for number in range(6)]
KEYS = ["k0", "k1"]
ACTIONS = ["commit", "commit", "commit", "branch", "branch", "line", "move", "start", "fork", "fork at", "forget"]
CHOICES = [st.sampled_from(choice) for choice in ([*ACTIONS, "prune"], NAMES, THREADS)]
STEPS = st.tuples(*CHOICES, st.integers(0, 20), st.integers(0, 20))


@dataclass(frozen=True)
class Step:
    """What both stores shall do."""

    action: str
    name: str
    head: str | None
    line: list[Snapshot]
    target: str | None
    number: int

    def on(self, store: StateStore) -> object:
        """Does it; the result, or the type of the error."""
        other = NAMES[self.number % len(NAMES)]
        try:
            match self.action:
                case "commit" | "branch":
                    store.commit(self.name, self.line[0], expected=self.head)
                case "line":
                    store.add_line(self.name, self.line, expected=self.head)
                case "move":
                    store.move_head(self.name, self.target, expected=self.head)
                case "start":
                    store.move_head(self.name, None, expected=self.head)
                case "fork":
                    store.fork(self.name, other)
                case "fork at":
                    store.fork(self.name, other, at=self.target)
                case "forget":
                    store.forget(self.name)
                case _:
                    return store.prune(self.name, keep=self.number % 5)
        except DeltaMemError as error:
            return type(error)
        return None


def visible(store: StateStore, ids: list[str]) -> list[object]:
    """All that can be seen, but for when sessions changed."""
    seen: list[object] = []
    names = {info.name for info in store.sessions()}
    for info in store.sessions():
        seen.append(replace(info, created_at=datetime.min, updated_at=datetime.min))
        log = store.log(info.name)
        seen += [log, store.find(info.name, IDS)]
        if info.head:
            line = store.line(info.head, since=-1)
            assert [turn.turn for turn in line] == list(range(line[0].turn, line[-1].turn + 1))
            assert {turn.id for turn in log} >= {turn.id for turn in line}
            seen += [line, *(store.absorbed(info.head, key) for key in KEYS)]
            for thread in THREADS:
                turns = store.thread(info.head, thread, last=99)
                assert turns == [turn for turn in line if turn.thread == thread]
                assert all(a.thread_messages == b.thread_start for a, b in pairwise(turns))
                seen += [store.thread(info.head, thread, last=last) for last in range(4)]
    for id in ids:
        try:
            snapshot = store.snapshot(id)
        except StoreError:
            continue
        assert snapshot.session in names  # an owner that exists, so that nothing stays forever
        seen.append(snapshot)
    return seen


def next_turn(store: StateStore, child: Child, parent: Snapshot | None, step: Values) -> Snapshot:
    """The turn that a step adds; now and then one that miscounts."""
    _, name, thread, pick, number = step
    mine = store.thread(parent.id, thread, last=1) if parent else []
    turn = child(
        parent,
        name,
        *(f"{name} {i}" for i in range(pick % 3)),
        before=mine[-1] if mine else None,
        thread=thread,
        key=KEYS[number % 2] if pick % 4 == 0 else None,
        created_at=datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=pick * number % 7),  # clocks may go back
    )
    entries = tuple(replace(entry, message_id=IDS[(pick + number + i) % 6]) for i, entry in enumerate(turn.entries))
    return replace(turn, entries=entries, thread_messages=turn.thread_messages + (number == 13))


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=40))
def test_stores_agree_on_random_histories(child: Child, steps: list[Values]) -> None:
    with SQLStore("sqlite://") as sql:
        check_history(sql, child, steps)


def test_postgresql_agrees_on_random_histories(child: Child, url: str) -> None:
    @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEPS, min_size=20, max_size=40))
    def check(steps: list[Values]) -> None:
        for info in sql.sessions():
            sql.forget(info.name)  # what an example that failed has left
        check_history(sql, child, steps)

    with SQLStore(url) as sql:
        check()


def check_history(sql: SQLStore, child: Child, steps: list[Values]) -> None:
    """Does the same on this store, which is empty, and on the plainest one; leaves it empty."""
    with MemoryStore() as memory:
        made: list[Snapshot] = []
        for values in steps:
            action, name, thread, pick, number = values
            info = memory.session(name)
            parent = memory.snapshot(info.head) if info and info.head else None
            if action == "branch":
                on_line = memory.line(parent.id, since=-1) if parent else []
                parent = on_line[pick % len(on_line)] if on_line else None
            turn = next_turn(memory, child, parent, values)
            after = child(turn, name, "after", thread=thread, turn=turn.turn + 1 + (pick == 13))
            step = Step(
                action=action,
                name=name,
                head=info.head if info else None,
                line=[turn, after],
                target=made[pick % len(made)].id if made else None,
                number=number,
            )
            assert step.on(memory) == step.on(sql)
            made += step.line
        ids = [turn.id for turn in made]
        assert visible(memory, ids) == visible(sql, ids)
        for name in NAMES:
            if memory.session(name):
                memory.forget(name)
                sql.forget(name)
        assert visible(memory, ids) == visible(sql, ids) == []
