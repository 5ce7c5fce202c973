"""Two replicas on Ray Serve, one PostgreSQL: whatever dies, each turn that was acknowledged is there, once."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch

from deltamem_agents import DeltaMemEngine, MemoryState, SQLStore
from deltamem_agents.store.postgresql import _SESSION
from tests.chat import byte_tokenizer, chat_model
from tests.postgresql import Server, free_port, wait_for
from tests.proofs.cluster import Cluster, alive, started
from tests.proofs.users import TOKENS, Gate, User, replica_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
USERS, TURNS, KILLS, STEP, RECENT, SEED = 20, 30, 10, 3, 8, 0
KINDS = ("prefill", "decode", "commit")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    model = chat_model()
    model.adapter.save_pretrained(folder / "adapter", dtype=torch.float32)
    model.detach().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'deltamem-agents[ray]'")
    with started(free_port()) as cluster:
        yield cluster


def arguments(folders: Path, store: str, **serve: object) -> dict[str, object]:
    return {
        "model": str(folders / "model"),
        "adapter": str(folders / "adapter"),
        "store": store,
        "recent_messages": RECENT,
        "serve": {"model_id": "tiny", "max_batch": 16, "drain_timeout": 10, **serve},
        "replicas": {"min_replicas": 2, "max_replicas": 2, "num_cpus": 0, "health_check_period_s": 1},
    }


class Talk:
    """Twenty users at once, in threads."""

    def __init__(self, cluster: Cluster, *, names: str, turns: int = TURNS) -> None:
        self.gate = Gate()
        self.users = [User(cluster.url, f"{names}-{number}", self.gate) for number in range(USERS)]
        self._threads = ThreadPoolExecutor(USERS)
        self._talks: list[Future[None]] = [self._threads.submit(user.talk, turns) for user in self.users]

    def reach(self, turns: int) -> float:
        """Waits until all users have made so many turns; seconds that it took."""
        begun = time.monotonic()
        self.gate.open(turns)
        while any(len(user.told) < turns for user in self.users):
            for talk in self._talks:
                if talk.done():
                    talk.result()
            time.sleep(0.05)
        return time.monotonic() - begun

    def end(self) -> None:
        for talk in self._talks:
            talk.result(timeout=600)

    @property
    def answers(self) -> Counter[str]:
        return sum((user.answers for user in self.users), Counter())

    @property
    def warm(self) -> float:
        later = [told.warm for user in self.users for told in user.told[1:]]
        return sum(later) / len(later)


def check(talk: Talk, store: str, folders: Path) -> None:
    """Each acknowledged turn is on its session's line, once, and as it is in a run that nothing disturbs."""
    with (
        SQLStore(store) as kept,
        DeltaMemEngine.from_pretrained(
            folders / "model", adapter=folders / "adapter", store=":memory:", recent_messages=RECENT
        ) as undisturbed,
        ThreadPoolExecutor(USERS) as threads,
    ):

        def check_user(user: User) -> None:
            info = kept.session(user.name)
            assert info is not None
            assert info.head is not None
            line = kept.line(info.head)
            assert [turn.id for turn in line] == [told.snapshot for told in user.told]
            said = [user.said(number)["id"] for number in range(len(user.told))]
            assert [entry.message_id for turn in line for entry in turn.entries if entry.role == "user"] == said
            assert [turn.messages for turn in line] == [2 * turn.turn for turn in line]
            for number, told in enumerate(user.told):
                alone = undisturbed.generate([user.said(number)], session=user.name, max_new_tokens=TOKENS)
                assert alone.reply.content == told.reply
                state = MemoryState.from_bytes(kept.snapshot(told.snapshot).state, fingerprint=undisturbed.fingerprint)
                expected = undisturbed.state(user.name)
                assert (state.tensor - expected.tensor).norm() <= 1e-3 * expected.tensor.norm()

        list(threads.map(check_user, talk.users))


class Killer:
    """Kills the replica of one user, when it is in the middle of something for that user."""

    def __init__(self, cluster: Cluster, server: Server, store: str) -> None:
        self._cluster, self._server, self._store = cluster, server, store
        self._random = random.Random(SEED)
        self._pids: dict[str, int] = {}
        self._aimed = False
        self.kind, self.killed, self.texts = "", threading.Event(), 0

    def aim(self, user: User, kind: str) -> None:
        """Has the replica killed in the next turn of a user that gets so far."""
        self._pids = self._cluster.replicas()
        self.kind, self.texts, self._aimed = kind, 0, True
        self.killed.clear()
        user.hook = self._hook

    def _hook(self, user: User, what: str) -> None:
        self.texts += what == "text" and not self.killed.is_set()
        if not self._aimed or (what == "text") != (self.kind == "decode"):
            return
        self._aimed = False
        pid = self._pids[replica_of(user)]
        if self.kind == "decode":
            self._kill(pid)
        elif self.kind == "prefill":
            threading.Timer(self._random.uniform(0.2, 0.9) * user.first, self._kill, [pid]).start()
        else:
            self._kill_in_commit(user.name, pid)

    def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.killed.set()

    def _kill_in_commit(self, name: str, pid: int) -> None:
        """Holds the session's lock until somebody waits for it, and then kills who does."""
        import psycopg

        holding = psycopg.connect(self._store, autocommit=True)
        holding.execute(f"SELECT pg_advisory_lock(hashtextextended(%s, {_SESSION}))", [name])
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

        def kill() -> None:
            with closing(holding):
                wait_for(lambda: holding.execute(waiting).fetchone() != (0,), self._server.folder / "log")
                self._kill(pid)
                while alive(pid):
                    time.sleep(0.01)

        threading.Thread(target=kill).start()


def test_ten_kills(cluster: Cluster, postgresql: Server, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = postgresql.fresh()
    assert cluster.deploy(arguments(folders, store)) is None
    cluster.wait_for(replicas=2)
    talk, killer = Talk(cluster, names="killed"), Killer(cluster, postgresql, store)
    phases: Counter[str] = Counter()
    times = []
    talk.reach(1)
    for number in range(KILLS):
        victim = talk.users[number]
        killer.aim(victim, KINDS[number % len(KINDS)])
        lost = victim.answers.total() - victim.answers["200"]
        talk.reach(STEP * (number + 1))
        assert killer.killed.wait(60)
        victim.hook = None
        met = victim.answers.total() - victim.answers["200"] > lost
        before = {"prefill": "prefill" if not killer.texts else "decode"}.get(killer.kind, killer.kind)
        phases[before if met else "between turns"] += 1
        times.append(cluster.wait_for(replicas=2))
    talk.end()
    with capsys.disabled():
        print(
            f"\n{KILLS} kills: {dict(phases)}; answers: {dict(talk.answers)}; a replica was back after at most ", end=""
        )
        print(f"{max(times):.0f} s; the longest turn took {longest(talk):.1f} s; {talk.warm:.0%} of turns were warm")
    check(talk, store, folders)
    assert talk.answers["200"] == USERS * TURNS
    assert min(phases[kind] for kind in KINDS) > 0


def longest(talk: Talk) -> float:
    return max(told.seconds for user in talk.users for told in user.told)


def test_redeployed_restarted_and_cut_off(
    cluster: Cluster, postgresql: Server, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = postgresql.fresh()
    assert cluster.deploy(arguments(folders, store)) is None
    talk = Talk(cluster, names="disturbed")
    talk.reach(3)

    def restart() -> None:
        postgresql.stop()
        postgresql.start()

    def cut() -> None:
        for _ in range(20):
            postgresql.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ 'deltamem'")
            time.sleep(0.1)

    def redeploy() -> None:
        assert cluster.deploy(arguments(folders, store, max_messages=77)) is None

    turns = 3
    for what, disturb in {"redeployed": redeploy, "PostgreSQL restarted": restart, "cut off": cut}.items():
        before = talk.answers
        done = ThreadPoolExecutor(1).submit(disturb)
        while not done.done():
            turns = min(turns + 1, TURNS - 3)
            talk.reach(turns)
        done.result()
        after = talk.reach(turns + 1)
        turns += 1
        with capsys.disabled():
            refused = {status: n for status, n in (talk.answers - before).items() if status != "200"}
            print(
                f"\n{what}: all users answered {after:.1f} s afterwards; refused meanwhile: {refused or 'nothing'}",
                end="",
            )
    talk.reach(TURNS)
    talk.end()
    with capsys.disabled():
        print(f"; the longest turn took {longest(talk):.1f} s; {talk.warm:.0%} of turns were warm")
    check(talk, store, folders)


def test_a_replica_that_cannot_load_its_model_says_why(cluster: Cluster, folders: Path, tmp_path: Path) -> None:
    """The deployment fails; what is deployed beside it goes on."""
    args = arguments(folders, str(tmp_path / "store.db")) | {"model": str(tmp_path / "nowhere")}
    failed = cluster.deploy(args, name="broken", prefix="/broken")
    assert failed is not None
    assert "BackboneError" in failed
    assert "nowhere" in failed
