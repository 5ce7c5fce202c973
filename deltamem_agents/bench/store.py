"""How a store in PostgreSQL holds up with many sessions: what its operations take, and what a session takes on disk."""

import itertools
import random
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import Engine, create_engine, make_url, text

from deltamem_agents.errors import StoreError
from deltamem_agents.store import Entry, Snapshot, SQLStore
from deltamem_agents.store.postgresql import DRIVER

BATCH = 5000
_NOISE = random.Random(0).randbytes(1 << 22)
"""States are floats, which don't compress: slices of this don't either."""

_SAID = "What was said here is as long as a message of some forty words is in a talk: " * 3


@dataclass(frozen=True, slots=True)
class StoreRow:
    """Seconds that something took, each time, at so many sessions."""

    sessions: int
    what: str
    seconds: tuple[float, ...]

    def __str__(self) -> str:
        """A row of a Markdown table, in milliseconds."""
        p50, p99 = statistics.median(self.seconds), sorted(self.seconds)[int(0.99 * len(self.seconds))]
        return f"| {self.sessions:,} | {self.what} | {len(self.seconds)} | {1000 * p50:.2f} | {1000 * p99:.2f} |"


HEADER = "| sessions | what | times | p50, ms | p99, ms |\n|---|---|---|---|---|"


def run_store(
    url: str, sizes: Sequence[int], *, state_bytes: int, threads: int, seconds: float, repeats: int
) -> Iterator[str]:
    """Fills an empty database to each of the sizes in turn, and measures at each.

    Args:
        url: of an empty PostgreSQL database. What is in it at the end stays there.
        sizes: numbers of sessions, ascending.
        state_bytes: of each state.
        threads: how many commit at once, each in a session of its own.
        seconds: how long they do.
        repeats: how often each operation is timed alone.

    Yields:
        Lines of Markdown, as they become known.

    Raises:
        StoreError: if the database is not PostgreSQL, or not empty.
    """
    plain = make_url(url)
    if plain.get_backend_name() not in ("postgresql", "postgres"):
        raise StoreError(f"{plain.get_backend_name()} is no PostgreSQL: expected a URL like postgresql://me@host/empty")
    with SQLStore(url + ("&" if plain.query else "?") + f"pool_size={threads + 4}", timeout=60) as store:
        if store.sessions(limit=1):
            raise StoreError("this database has sessions: expected an empty one, which this fills; create one")
        engine = create_engine(plain.set(drivername=DRIVER), hide_parameters=True)
        there = 0
        yield HEADER
        for size in sizes:
            begun = time.perf_counter()
            _fill(engine, range(there, size), state_bytes)
            filled, there = time.perf_counter() - begun, size
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE"))
                used = int(connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)
            yield from map(str, _alone(store, size, state_bytes, repeats))
            yield from map(str, _together(store, size, state_bytes, threads, seconds))
            yield f"| {size:,} | disk: {used / size / 1000:.1f} kB a session; filled in {filled:.0f} s | | | |"
        engine.dispose()


def _name(number: int) -> str:
    return f"user-{number:08}"


def _turn(name: str, parent: Snapshot | None, state_bytes: int) -> Snapshot:
    id = uuid.uuid4().hex
    start = random.randrange(len(_NOISE) - state_bytes)
    words = [
        Entry(role=role, digest="0" * 64, message_id=f"{id}-{position}", text=_SAID, tokens=50, written=True)
        for position, role in enumerate(("user", "assistant"))
    ]
    before = parent.messages if parent else 0
    return Snapshot(
        id=id,
        parent=parent.id if parent else None,
        session=name,
        thread="main",
        turn=parent.turn + 1 if parent else 1,
        messages=before + 2,
        thread_messages=before + 2,
        thread_tokens=50 * (before + 2),
        fingerprint="0" * 64,
        created_at=datetime.now(UTC),
        state=_NOISE[start : start + state_bytes],
        entries=tuple(words),
        kind="turn",
    )


_FILL = (
    """
    INSERT INTO deltamem_snapshots (id, session, thread, turn, messages, thread_messages, thread_tokens, fingerprint,
        created_at, kind, state, root)
    SELECT md5(n::text), 'user-' || lpad(n::text, 8, '0'), 'main', 1, 2, 2, 100, repeat('0', 64), :time, 'turn',
        substr(:noise, 1 + (n::bigint * 7919 % (length(:noise) - CAST(:bytes AS int)))::int, CAST(:bytes AS int)),
        md5(n::text)
    FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS n
    """,
    """
    INSERT INTO deltamem_entries
    SELECT md5(n::text), m, 'user', repeat('0', 64), md5(n::text) || '-' || m, 1, :text, 50
    FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS n, generate_series(0, 1) AS m
    """,
    """
    INSERT INTO deltamem_sessions SELECT 'user-' || lpad(n::text, 8, '0'), md5(n::text), :time, :time
    FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS n
    """,
)


def _fill(engine: Engine, numbers: range, state_bytes: int) -> None:
    """Adds sessions of one turn each, many in a transaction, as `_turn` makes them; the server does all of it."""
    given = {"time": datetime.now(UTC).isoformat(), "noise": _NOISE, "bytes": state_bytes, "text": _SAID}
    for first in numbers[::BATCH]:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL synchronous_commit = off"))
            for statement in map(text, _FILL):
                names = statement.compile().params.keys()
                last = min(first + BATCH, numbers.stop) - 1
                values = {**given, "first": first, "last": last}
                connection.execute(statement, {name: values[name] for name in names})


def _head(store: SQLStore, name: str) -> Snapshot:
    info = store.session(name)
    assert info is not None
    assert info.head is not None
    return replace(store.line(info.head)[-1], state=b"")


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _alone(store: SQLStore, size: int, state_bytes: int, repeats: int) -> Iterator[StoreRow]:
    """Each operation by itself, on sessions drawn at random."""
    drawn = [_name(random.randrange(size)) for _ in range(repeats)]
    heads = [_head(store, name) for name in drawn]
    ids = [[f"{head.id}-0", uuid.uuid4().hex] for head in heads]
    works: dict[str, list[Callable[[], object]]] = {
        "head": [partial(store.session, name) for name in drawn],
        "load a state": [partial(store.snapshot, head.id) for head in heads],
        "find": [partial(store.find, name, some) for name, some in zip(drawn, ids, strict=True)],
        "list a page of 50": [partial(store.sessions, after=name, limit=50) for name in drawn],
        "list 50 by prefix": [partial(store.sessions, prefix=name[:-3], limit=50) for name in drawn],
    }
    for what, calls in works.items():
        yield StoreRow(size, what, tuple(map(_timed, calls)))
    new = [f"new-{size}-{number}" for number in range(repeats)]
    firsts = [_turn(name, None, state_bytes) for name in new]
    turns = [_turn(turn.session, turn, state_bytes) for turn in firsts]
    works = {
        "commit, new session": [partial(store.commit, t.session, t, expected=None) for t in firsts],
        "commit": [partial(store.commit, t.session, t, expected=t.parent) for t in turns],
        "prune 1 of 2": [partial(store.prune, name, keep=1) for name in new],
        "forget": [partial(store.forget, name) for name in new],
    }
    for what, calls in works.items():
        yield StoreRow(size, what, tuple(map(_timed, calls)))


def _together(store: SQLStore, size: int, state_bytes: int, threads: int, seconds: float) -> Iterator[StoreRow]:
    """Commits of many threads at once: by themselves, and while one more prunes without a pause."""
    for pruning in (False, True):
        end, took = time.perf_counter() + seconds, list[float]()
        chosen = random.sample(range(size), min(size, threads + 1))
        done = threading.Event()

        def commit(number: int, end: float = end, took: list[float] = took) -> None:
            head = _head(store, _name(number))
            while time.perf_counter() < end:
                turn = _turn(head.session, head, state_bytes)
                took.append(_timed(partial(store.commit, turn.session, turn, expected=turn.parent)))
                head = turn

        def prune(number: int, done: threading.Event = done) -> int:
            head = _head(store, _name(number))
            for count in itertools.count():
                if done.is_set():
                    return count
                turn = _turn(head.session, head, state_bytes)
                store.commit(turn.session, turn, expected=turn.parent)
                store.prune(turn.session, keep=1)
                head = turn
            return 0

        with ThreadPoolExecutor(threads + 1) as pool:
            pruned = pool.submit(prune, chosen[-1]) if pruning else None
            list(pool.map(commit, chosen[:threads]))
            done.set()
        beside = f" while one prunes, {pruned.result()} times" if pruned else ""
        yield StoreRow(size, f"commit, {threads} threads, {len(took) / seconds:.0f} a second{beside}", tuple(took))
