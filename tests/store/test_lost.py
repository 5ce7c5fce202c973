"""A PostgreSQL that goes away in the middle: what was kept is found out, and nothing is lost or made twice."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import count

import pytest
from sqlalchemy import Engine, event

from deltamem_agents.errors import ConflictError, SessionNotFoundError, StoreError
from deltamem_agents.store import Snapshot, SQLStore
from tests.postgresql import Server, free_port, started

Child = Callable[..., Snapshot]


class Cut:
    """A network between store and server that breaks as the next COMMIT passes.

    "before" the COMMIT has reached the server, which learns of the break; "never": it doesn't learn of it; "late": the
    COMMIT gets there when the client has long been told of the break; "after": only the server's answer is lost.
    """

    def __init__(self, server: Server) -> None:
        self.port = free_port()
        self.mode: str | None = None
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with suppress(OSError):  # the server may be away
                    link = Link(client, socket.create_connection(("127.0.0.1", self._server.port)))
                    threading.Thread(target=self._up, args=(link,), daemon=True).start()
                    threading.Thread(target=link.down, daemon=True).start()
                    continue
                client.close()

    def _up(self, link: "Link") -> None:
        with suppress(OSError):
            while data := link.client.recv(1 << 16):
                mode = self.mode if b"COMMIT\0" in data else None  # not in READ COMMITTED
                if mode is None:
                    link.server.sendall(data)
                    continue
                self.mode, link.deaf = None, True
                if mode == "after":
                    link.server.sendall(data)
                    time.sleep(0.3)
                link.client.shutdown(socket.SHUT_RDWR)
                if mode == "late":
                    time.sleep(0.5)
                    link.server.sendall(data)
                if mode == "never":
                    return
                break
            link.server.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Link:
    """A connection of the client, and one for it to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server, self.deaf = client, server, False

    def down(self) -> None:
        with suppress(OSError):
            while data := self.server.recv(1 << 16):
                if not self.deaf:
                    self.client.sendall(data)
        with suppress(OSError):
            self.client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def cut(postgresql: Server) -> Iterator[Cut]:
    with closing(Cut(postgresql)) as network:
        yield network


@pytest.fixture
def database(postgresql: Server) -> str:
    return postgresql.database()


@pytest.fixture
def store(postgresql: Server, cut: Cut, database: str) -> Iterator[SQLStore]:
    with SQLStore(postgresql.url(database, port=cut.port) + "?pool_size=1&max_overflow=0", timeout=3) as opened:
        yield opened


@pytest.mark.parametrize("mode", ["before", "never", "late", "after"])
def test_a_commit_whose_connection_breaks_is_kept_once(store: SQLStore, cut: Cut, child: Child, mode: str) -> None:
    line: list[Snapshot] = []
    for _ in range(2):  # a session that is new, and one that isn't
        turn = child(line[-1] if line else None, "alice", "x")
        cut.mode = mode
        store.commit("alice", turn, expected=line[-1].id if line else None)
        assert cut.mode is None
        line.append(turn)
        assert [snapshot.id for snapshot in store.log("alice")] == [snapshot.id for snapshot in line]
    with pytest.raises(ConflictError):
        store.commit("alice", turn, expected=line[0].id)


@pytest.mark.parametrize("mode", ["before", "after"])
def test_every_change_is_made_once(store: SQLStore, cut: Cut, child: Child, mode: str) -> None:
    first = child(None, "alice", "x")
    line = [first, child(first, "alice", "y")]
    changes: list[Callable[[], object]] = [
        lambda: store.add_line("alice", line, expected=None),
        lambda: store.move_head("alice", first.id, expected=line[1].id),
        lambda: store.fork("alice", "bob"),
        lambda: store.prune("alice", keep=1),
        lambda: store.forget("alice"),
    ]
    for change in changes:
        cut.mode = mode
        change()
        assert cut.mode is None
    bobs = store.session("bob")
    assert bobs is not None
    assert (bobs.head, [info.name for info in store.sessions()]) == (first.id, ["bob"])
    with pytest.raises(SessionNotFoundError):
        store.forget("alice")


def test_a_session_that_somebody_begins_anew_is_not_forgotten_too(
    store: SQLStore, cut: Cut, child: Child, postgresql: Server, database: str
) -> None:
    store.commit("alice", child(None, "alice", "old"), expected=None)
    new = child(None, "alice", "new")
    with SQLStore(postgresql.url(database)) as other:
        again = threading.Event()

        def begin_anew(*_: object) -> None:
            if cut.mode is None and not again.is_set():  # the answer to the first attempt is lost
                again.set()
                other.commit("alice", new, expected=None)

        event.listen(Engine, "do_connect", begin_anew)
        try:
            cut.mode = "after"
            store.forget("alice")
        finally:
            event.remove(Engine, "do_connect", begin_anew)
        assert again.is_set()
        assert [snapshot.id for snapshot in other.log("alice")] == [new.id]


def test_reads_go_on_over_cut_connections(store: SQLStore, child: Child, postgresql: Server) -> None:
    turn = child(None, "alice", "x")
    store.commit("alice", turn, expected=None)
    for _ in range(3):
        postgresql.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'deltamem%'")
        assert store.snapshot(turn.id) == turn


def test_commits_go_on_while_a_server_crashes_and_starts_again(child: Child) -> None:
    with started() as server, SQLStore(server.fresh(), timeout=60) as store:
        store.commit("alice", child(None, "alice", "x"), expected=None)
        stop, acknowledged = threading.Event(), []

        def talk() -> None:
            head = store.snapshot(str(store.session("alice").head))  # type: ignore[union-attr]
            for number in count():
                if stop.is_set():
                    return
                turn = child(head, "alice", str(number))
                store.commit("alice", turn, expected=head.id)
                acknowledged.append(turn.id)
                head = turn

        talking = threading.Thread(target=talk)
        talking.start()
        for _ in range(2):
            time.sleep(0.5)
            server.stop()
            said = len(acknowledged)
            server.start()
            end = time.monotonic() + 60
            while len(acknowledged) < said + 3 and time.monotonic() < end:
                time.sleep(0.02)
        stop.set()
        talking.join(60)
        assert len(acknowledged) >= 6
        assert [snapshot.id for snapshot in store.log("alice")][1:] == acknowledged


def test_a_server_that_stays_away_is_named_with_what_is_not_known(child: Child) -> None:
    with (
        started() as server,
        closing(Cut(server)) as cut,
        SQLStore(server.url(server.database(), port=cut.port), timeout=1) as store,
    ):
        turn = child(None, "alice", "x")
        cut.mode = "after"
        stopped = threading.Event()

        def stop(*_: object) -> None:
            if not stopped.is_set() and cut.mode is None:
                stopped.set()
                server.stop()

        event.listen(Engine, "do_connect", stop)
        try:
            with pytest.raises(StoreError, match=r"does not answer: .*whether it kept the last change cannot be told"):
                store.commit("alice", turn, expected=None)
        finally:
            event.remove(Engine, "do_connect", stop)
        assert stopped.is_set()
        with pytest.raises(StoreError, match="does not answer: expected a PostgreSQL server there") as caught:
            store.snapshot(turn.id)
        assert "whether" not in str(caught.value)
        server.start()
        assert store.snapshot(turn.id) == turn
