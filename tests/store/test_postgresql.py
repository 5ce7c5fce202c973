"""What is particular to a store in PostgreSQL: opening and upgrading it, what can go wrong, and who waits for whom."""

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text

from deltamem_agents.errors import ConflictError, SessionError, StoreError
from deltamem_agents.store import Snapshot, SQLStore, migrations
from tests.postgresql import Server, give

Child = Callable[..., Snapshot]


def commit(store: SQLStore, child: Child, name: str, parent: Snapshot | None = None) -> Snapshot:
    turn = child(parent, name, f"{name} says", "reply")
    store.commit(name, turn, expected=parent.id if parent else None)
    return turn


def names(store: SQLStore) -> list[str]:
    return [info.name for info in store.sessions()]


# Opening


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_its_urls_mean_psycopg_3(url: str, scheme: str, child: Child) -> None:
    with SQLStore(url.replace("postgresql", scheme, 1)) as store:
        commit(store, child, "alice")


def test_another_driver_is_refused() -> None:
    with pytest.raises(StoreError, match=r"psycopg2 is neither SQLite nor PostgreSQL by psycopg 3; expected a file"):
        SQLStore("postgresql+psycopg2://me@host/db")


def test_a_missing_driver_names_the_extra() -> None:
    code = """
import sys
sys.modules["psycopg"] = None
from deltamem_agents.store import SQLStore
SQLStore("postgresql://me@host/db")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'needs psycopg 3, which is not there: pip install "deltamem-agents[postgres]"' in ended.stderr


def test_options_of_the_pool(url: str, child: Child) -> None:
    with SQLStore(f"{url}?pool_size=1&max_overflow=0&pool_timeout=0.2&pool_recycle=60&pool_pre_ping=false") as store:
        commit(store, child, "alice")
        with paused("INSERT INTO deltamem_sessions") as (reached, go), ThreadPoolExecutor() as threads:
            bob = threads.submit(commit, store, child, "bob")
            assert reached.wait(20)
            with pytest.raises(StoreError, match="all connections of this process's pool in use: raise pool_size"):
                store.sessions()
            go.set()
            bob.result(20)
        assert names(store) == ["alice", "bob"]


@pytest.mark.parametrize("options", ["pool_size=0", "pool_size=many", "max_overflow=-1", "pool_pre_ping=perhaps"])
def test_bad_options_of_the_pool_are_refused(options: str) -> None:
    with pytest.raises(StoreError, match=f"the store's URL has {options}: .*; expected like pool_size=10"):
        SQLStore(f"postgresql://me@host/db?{options}")


def test_whoever_cannot_come_in_is_told_why(postgresql: Server) -> None:
    for url, message in {
        "postgresql://me@127.0.0.1:1/db": "does not answer: expected a PostgreSQL server there; check host and port",
        postgresql.url("postgres", password="wrong-secret"): "refuses user and password: check both",
        postgresql.url("nowhere"): "is not there: expected an existing database and user",
        "postgresql://me@127.0.0.1:1/db?password=wrong-secret": "does not answer",
    }.items():
        with pytest.raises(StoreError, match=message) as caught:
            SQLStore(url)
        assert "secret" not in str(caught.value)


def test_ten_processes_begin_at_once(url: str) -> None:
    code = """
import os, sys
from deltamem_agents.store import SQLStore
children = []
for number in range(10):
    if (pid := os.fork()) == 0:
        with SQLStore(sys.argv[1], timeout=60) as store:
            os._exit(0 if store.sessions() == [] else 1)
    children.append(pid)
print([os.waitpid(pid, 0)[1] for pid in children])
"""
    ended = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=False)
    assert ended.stdout == f"{[0] * 10}\n", ended.stderr


# Schemas of other versions


def old_database(server: Server, schema: int) -> str:
    """A database as an earlier version left it: alice has two turns, of which bob has forked the first."""
    url = server.fresh()
    engine = create_engine(url.replace("postgresql", "postgresql+psycopg"))
    with engine.begin() as connection:
        for number in range(1, schema + 1):
            for step in migrations.MIGRATIONS[number]:
                if isinstance(step, str):
                    connection.execute(text(step.format(blob="BYTEA")))
        connection.execute(text(f"UPDATE deltamem_meta SET value = '{schema}'"))
        tokens = "tokens, " if schema == 1 else ""
        for id, parent, turn in (("a", None, 1), ("b", "a", 2), ("c", "a", 2)):
            columns = f"id, parent, session, thread, turn, messages, {tokens}fingerprint, created_at, kind, state"
            owner = "bob" if id == "c" else "alice"
            time = "2024-01-01T00:00:00+00:00"
            values = (id, parent, owner, "t", turn, turn, *([10] if tokens else []), "f", time, "turn", b"state of it")
            marks = ", ".join(["%s"] * len(values))
            connection.exec_driver_sql(f"INSERT INTO deltamem_snapshots ({columns}) VALUES ({marks})", values)
        for name, head in {"alice": "b", "bob": "c"}.items():
            statement = "INSERT INTO deltamem_sessions VALUES (%s, %s, %s, %s)"
            connection.exec_driver_sql(statement, (name, head, time, time))
    engine.dispose()
    return url


@pytest.mark.parametrize("schema", [1, 2])
def test_an_older_schema_is_upgraded(postgresql: Server, schema: int, child: Child) -> None:
    with SQLStore(old_database(postgresql, schema)) as store:
        assert [snapshot.id for snapshot in store.line("b")] == ["a", "b"]
        assert store.snapshot("c").state == b"state of it"
        head = store.snapshot("b")
        turn = child(head, "alice", "x", thread="t", before=head)
        store.commit("alice", turn, expected="b")
        store.forget("alice")
        assert [(snapshot.id, snapshot.session) for snapshot in store.line("c")] == [("a", "bob"), ("c", "bob")]


def test_an_older_schema_that_is_read_only(postgresql: Server) -> None:
    url = old_database(postgresql, 2)
    postgresql.run(f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = on")
    with pytest.raises(StoreError, match="schema version 2, expected version 3, and its database is read-only: open"):
        SQLStore(url)


def test_a_newer_schema_is_refused(postgresql: Server) -> None:
    url = postgresql.fresh()
    SQLStore(url).close()
    postgresql.run("UPDATE deltamem_meta SET value = '7'", database=url.rpartition("/")[2])
    with pytest.raises(StoreError, match=r"schema version 7, expected at most 3: .* upgrade the package"):
        SQLStore(url)


# When writing cannot be done


def test_a_read_only_database_is_read(postgresql: Server, child: Child) -> None:
    database = postgresql.database()
    with SQLStore(postgresql.url(database)) as store:
        turn = commit(store, child, "alice")
    postgresql.run(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with SQLStore(postgresql.url(database)) as store:
        assert store.snapshot(turn.id) == turn
        for change in (lambda: commit(store, child, "alice", turn), lambda: store.forget("alice")):
            with pytest.raises(StoreError, match="is read-only: expected a database to write to; use the primary"):
                change()


def test_a_full_disk_leaves_the_store_as_it_was(postgresql: Server, child: Child, small_disk: Path) -> None:
    database = postgresql.database()
    postgresql.run(f"CREATE TABLESPACE small_{database} LOCATION '{small_disk}'")
    postgresql.run(f"ALTER DATABASE {database} SET TABLESPACE small_{database}")
    with SQLStore(postgresql.url(database)) as store:
        heads = [commit(store, child, "alice")]

        def fill() -> None:
            while heads[-1].turn < 100:
                turn = child(heads[-1], "alice", "x", state=random.Random(heads[-1].turn).randbytes(1 << 20))
                store.commit("alice", turn, expected=heads[-1].id)
                heads.append(turn)

        with pytest.raises(StoreError, match="has no room left on its disk: nothing was written; free some space"):
            fill()
        assert [turn.id for turn in store.log("alice")] == [head.id for head in heads]
    postgresql.run(f"DROP DATABASE {database}")
    postgresql.run(f"DROP TABLESPACE small_{database}")


@pytest.fixture
def small_disk(postgresql: Server) -> Iterator[Path]:
    disk = postgresql.folder / "small"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m,mode=777", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here: needs root")
    give(disk)
    yield disk
    subprocess.run(["umount", disk], check=True)


# Who waits for whom


@contextmanager
def paused(statement: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Stops the first transaction that runs such a statement until `go` is set."""
    reached, go = threading.Event(), threading.Event()

    def pause(_: Connection, __: object, found: str, *rest: object) -> None:
        if found.startswith(statement) and not reached.is_set():
            reached.set()
            assert go.wait(30)

    event.listen(Engine, "before_cursor_execute", pause)
    try:
        yield reached, go
    finally:
        go.set()
        event.remove(Engine, "before_cursor_execute", pause)


@pytest.mark.parametrize("delete", ["prune", "forget"])
def test_sessions_that_share_nothing_never_wait(url: str, child: Child, delete: str) -> None:
    with SQLStore(url) as store, SQLStore(url, timeout=1) as hasty, ThreadPoolExecutor() as threads:
        second = commit(store, child, "alice", commit(store, child, "alice"))
        bobs = commit(store, child, "bob")
        with paused("DELETE FROM") as (reached, go):
            deleting = threads.submit(store.prune, "alice", keep=1) if delete == "prune" else None
            deleting = deleting or threads.submit(store.forget, "alice")
            assert reached.wait(20)
            commit(store, child, "bob", commit(store, child, "bob", bobs))
            commit(store, child, "carol")
            store.fork("bob", "dave")
            store.forget("carol")
            assert store.prune("bob", keep=1) == 0  # dave is on it
            assert names(store) == ["alice", "bob", "dave"]
            with pytest.raises(StoreError, match="is locked: another process works on the same session"):
                commit(hasty, child, "alice", second)
            go.set()
            deleting.result(20)


def test_a_family_waits_for_what_is_deleted_from_it(url: str, child: Child) -> None:
    """Bob goes on with a turn of his that hangs on one of alice's, just when hers is deleted."""
    with SQLStore(url) as store, ThreadPoolExecutor() as threads:
        first = commit(store, child, "alice")
        store.fork("alice", "bob")
        bobs = commit(store, child, "bob", first)
        store.move_head("bob", None, expected=bobs.id)
        with paused("DELETE FROM deltamem_snapshots") as (reached, go):
            deleting = threads.submit(store.forget, "alice")
            assert reached.wait(20)
            moving = threads.submit(store.move_head, "bob", bobs.id, expected=None)
            with pytest.raises(TimeoutError):
                moving.result(0.5)
            go.set()
            deleting.result(20)
            moving.result(20)
        assert [snapshot.id for snapshot in store.line(bobs.id)] == [bobs.id]
        store.forget("bob")
        assert names(store) == []


def test_a_family_in_turmoil_loses_nothing(postgresql: Server, child: Child) -> None:
    """Threads fork, go on, go back, prune and forget. What nobody deleted from a session's line stays on it."""
    database = postgresql.database()
    with SQLStore(f"{postgresql.url(database)}?pool_size=8", timeout=30) as store:
        first = commit(store, child, "base")
        commit(store, child, "base", first)

        def live(number: int) -> int:
            dice, done = random.Random(number), 0
            for _ in range(25):
                name, other = f"s{number}", f"s{dice.randrange(4)}"
                try:
                    info = store.session(name)
                    if info is None:
                        store.fork(dice.choice(["base", other]), name)
                        continue
                    head = store.snapshot(str(info.head))
                    line = store.line(head.id, since=-1)
                    assert line[0].turn == 1 or pruned[number], f"{name} lost its beginning"
                    match dice.choice(["commit", "commit", "back", "branch", "prune", "forget"]):
                        case "commit":
                            commit(store, child, name, head)
                        case "branch":
                            base = dice.choice(line)
                            before = next((s for s in reversed(line[: base.turn]) if s.thread == name), None)
                            store.commit(name, child(base, name, "x", before=before), expected=head.id)
                        case "back":
                            store.move_head(name, dice.choice(store.log(name)).id, expected=head.id)
                        case "prune":
                            if number % 2:
                                pruned[number] = True
                                store.prune(name, keep=2)
                        case "forget":
                            store.forget(name)
                            pruned[number] = True
                    done += 1
                except (ConflictError, SessionError):
                    pass  # others were faster
            return done

        pruned = dict.fromkeys(range(4), False)
        with ThreadPoolExecutor(4) as threads:
            done = list(threads.map(live, range(4)))
        assert min(done) > 5
        for name in names(store):
            store.forget(name)
        for table in ("snapshots", "entries", "sessions"):
            assert postgresql.run(f"SELECT count(*) FROM deltamem_{table}", database=database) == "0"


# Many sessions


def test_no_statement_looks_at_every_row(postgresql: Server, child: Child) -> None:
    database = postgresql.database()
    postgresql.run(f"ALTER DATABASE {database} SET random_page_cost = 1.1")  # no disk turns any more
    with SQLStore(postgresql.url(database)) as store:
        line = [commit(store, child, "alice")]
        line.append(commit(store, child, "alice", line[0]))
        store.fork("alice", "alice's")
        fill = """
            INSERT INTO deltamem_snapshots (id, session, thread, turn, messages, fingerprint, created_at, kind,
                thread_messages, thread_tokens, key, state, root)
            SELECT 'x' || n, 's' || n, 'main', 1, 1, 'f', now()::text, 'turn', 1, 1, 'k' || n % 9, '', 'x' || n
            FROM generate_series(1, 20000) n;
            INSERT INTO deltamem_entries SELECT 'x' || n, 0, 'user', 'd', 'm' || n, 1, 'text', 1
            FROM generate_series(1, 20000) n;
            INSERT INTO deltamem_sessions SELECT 's' || n, 'x' || n, now()::text, now()::text
            FROM generate_series(1, 20000) n;
        """
        postgresql.run(fill, database=database)
        postgresql.run("ANALYZE", database=database)
        plans: list[str] = []

        def explain(connection: Connection, cursor: object, statement: str, parameters: object, *_: object) -> None:
            if "deltamem_" in statement and "_meta" not in statement and not statement.startswith("EXPLAIN"):
                rows = connection.connection.cursor()
                many = parameters[0] if isinstance(parameters, list) else parameters
                rows.execute("EXPLAIN " + statement, many)
                plans.append(statement + "\n" + "\n".join(row[0] for row in rows.fetchall()))

        event.listen(Engine, "before_cursor_execute", explain)
        try:
            head = line[1]
            store.session("alice")
            store.sessions(prefix="s1", after="s15", limit=20)
            store.find("alice", ["m1", "m2"])
            store.absorbed(head.id, "k1")
            store.thread(head.id, "alice", last=4)
            store.log("alice")
            store.line(head.id)
            head = commit(store, child, "alice", head)
            store.move_head("alice", line[0].id, expected=head.id)
            store.fork("alice", "bob")
            store.prune("alice", keep=1)
            store.forget("alice's")
            store.forget("alice")
        finally:
            event.remove(Engine, "before_cursor_execute", explain)
        assert len(plans) > 40
        slow = [plan for plan in plans if "Seq Scan on deltamem" in plan]
        assert not slow, "\n\n".join(slow)
