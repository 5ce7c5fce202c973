"""Two processes in one session, and twenty threads in twenty: nothing lost, nothing twice, nothing mixed up."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from deltamem_agents import DeltaMemEngine, MemoryState, Message, SQLStore
from tests.chat import byte_tokenizer, chat_model
from tests.engine.conftest import Start, model_for
from tests.engine.conftest import start as start  # a fixture
from tests.proofs.racer import SESSION

ROOT = Path(__file__).parents[2]
NAMES = ("Ada", "Bob")
TURNS, RECENT, TOKENS = 20, 3, 6
THREADS = 20


def near(state: MemoryState, expected: MemoryState) -> bool:
    return bool((state.tensor - expected.tensor).norm() <= 1e-3 * expected.tensor.norm())


def race(
    model: str, adapter: str | None, store: Path | str, *, own_threads: bool = False
) -> tuple[dict[str, list[Message]], int]:
    """Lets processes talk at once; gives each turn's messages by the id of its snapshot, and the lost races."""
    racers = []
    for name in NAMES:
        arguments = json.dumps([model, adapter, str(store), name, TURNS, RECENT, TOKENS, own_threads])
        command = [sys.executable, "-m", "tests.proofs.racer", arguments]
        racers.append(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(len(racers)) as threads:
        ended = list(threads.map(lambda racer: racer.communicate("go\n")[0], racers))
    assert [racer.returncode for racer in racers] == [0] * len(racers)
    results = [json.loads(out.splitlines()[-1]) for out in ended]
    told = {t["snapshot"]: [Message(**m) for m in t["messages"]] for result in results for t in result["said"]}
    return told, sum(result["conflicts"] for result in results)


def check_race(store: Path | str, told: dict[str, list[Message]], replay: DeltaMemEngine) -> None:
    """The line holds every turn once, in a chain, each with the state that a replay of the ledger has there."""
    with SQLStore(store) as opened:
        info = opened.session(SESSION)
        assert info is not None
        assert info.head is not None
        line = [opened.snapshot(s.id) for s in opened.line(info.head)]
    assert len(told) == len(line) == len(NAMES) * TURNS
    assert {s.id for s in line} == told.keys()
    assert [s.turn for s in line] == list(range(1, len(line) + 1))
    assert [s.parent for s in line] == [None, *(s.id for s in line[:-1])]
    assert [s.messages for s in line] == [2 * s.turn for s in line]
    users = [s.entries[0].message_id for s in line]
    assert sorted(users) == sorted(f"{name}-{number}" for name in NAMES for number in range(TURNS))
    for name in NAMES:
        mine = [id for id in users if id.startswith(name)]
        assert mine == [f"{name}-{number}" for number in range(TURNS)]
    assert [[e.digest for e in s.entries] for s in line] == [[m.digest() for m in told[s.id]] for s in line]
    for snapshot in line:
        replay.absorb(told[snapshot.id], session="replay", thread=snapshot.thread)
        assert near(MemoryState.from_bytes(snapshot.state, fingerprint=replay.fingerprint), replay.state("replay"))


@pytest.mark.parametrize("own_threads", [False, True], ids=["new messages, one thread", "histories, a thread each"])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_processes_race_in_one_session(
    tmp_path: Path, kind: str, own_threads: bool, request: pytest.FixtureRequest
) -> None:
    store = tmp_path / "store.db" if kind == "sqlite" else request.getfixturevalue("postgresql").fresh()
    model = chat_model()
    model.adapter.save_pretrained(tmp_path / "adapter", dtype=torch.float32)
    model.detach().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    folders = str(tmp_path / "model"), str(tmp_path / "adapter")
    told, conflicts = race(*folders, store, own_threads=own_threads)
    assert conflicts, "they didn't meet: this race proves nothing"
    with DeltaMemEngine.from_pretrained(
        folders[0], adapter=folders[1], store=":memory:", recent_messages=RECENT
    ) as replay:
        check_race(store, told, replay)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_race_on_the_bundled_model(tmp_path: Path) -> None:
    told, conflicts = race("bundled", None, tmp_path / "store.db")
    assert conflicts, "they didn't meet: this race proves nothing"
    with DeltaMemEngine.bundled(store=":memory:", recent_messages=RECENT) as replay:
        check_race(tmp_path / "store.db", told, replay)


def test_twenty_threads_in_twenty_sessions_do_not_touch(start: Start) -> None:
    """Each session ends as it does for the same turns alone: replies, and state."""
    engine, alone = start(model_for()), start(store=":memory:")
    together = threading.Barrier(THREADS)

    def talk(number: int) -> list[str]:
        together.wait(60)
        return [tell(engine, number, turn) for turn in range(4)]

    with ThreadPoolExecutor(THREADS) as threads:
        talks = [threads.submit(talk, number) for number in range(THREADS)]
        told = [talk.result(timeout=300) for talk in talks]
    for number, replies in enumerate(told):
        assert replies == [tell(alone, number, turn) for turn in range(4)]
        assert near(engine.state(f"s{number}"), alone.state(f"s{number}"))
    states = torch.stack([alone.state(f"s{number}").tensor.flatten() for number in range(THREADS)])
    assert torch.pdist(states).min() > 1e-2 * states.norm(dim=1).max()  # so that near the own one is far from others


def tell(engine: DeltaMemEngine, number: int, turn: int) -> str:
    said = {"role": "user", "content": f"Secret {number * 7919 % 1000} of turn {turn}: {chr(97 + number) * 3}"}
    return engine.generate([said], session=f"s{number}", max_new_tokens=TOKENS).reply.content
