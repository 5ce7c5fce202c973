"""Processes die at any moment; conversations don't. On the bundled model, by SIGKILL, in SQLite and in PostgreSQL."""

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deltamem_agents import MemoryState, Snapshot, SQLStore
from tests.postgresql import Server
from tests.proofs.talker import SESSION, Task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL"),
]

ROOT = Path(__file__).parents[2]
KILLS, AIMED, SEED = 50, 20, 0
RECENT = (2, 3)
"""Windows, in turns: one moves at each turn from the third on; the other at the fourth, and is warm at the fifth."""
TEXTS = (
    "My name is Nora and I live in Lisbon.",
    "I bought a blue bicycle last week.",
    "My sister Ines is a baker in Porto.",
    "Tomorrow I shall paint the kitchen door green.",
    "What colour is my bicycle?",
)
SAID = [{"role": "user", "content": text, "id": f"u{number}"} for number, text in enumerate(TEXTS, 1)]
PHASES = {
    "turn": "prefill",
    "text": "decode",
    "commit": "commit",
    "committed": "committed, not delivered",
    "reply": "between turns",
}
"""What a process is at after each of its notes."""

Note = dict[str, Any]


class Talkers:
    """The process that forks the talking ones."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.proofs.talker"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.read()["what"] == "ready"

    def read(self) -> Note:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process that forks has ended"
        note: Note = json.loads(line)
        return note

    def talk(self, task: Task, *, kill_after: tuple[str, int, float] | None = None) -> list[Note]:
        """Runs a task and returns its notes; kills it some seconds after a note of a kind has come for the nth time."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        notes = [self.read()]
        while notes[-1]["what"] != "gone":
            notes.append(self.read())
            if kill_after and kill_after[:2] == (notes[-1]["what"], sum(notes[-1]["what"] == n["what"] for n in notes)):
                time.sleep(kill_after[2])
                os.kill(notes[0]["pid"], signal.SIGKILL)
        assert notes.pop()["status"] == (-signal.SIGKILL if kill_after else 0)
        return notes

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


@dataclass
class Reference:
    """An uninterrupted conversation, and a store in which only its first turn has happened."""

    recent: int
    begun: str
    copy: Callable[[str], str]
    """Copies a store."""
    history: list[dict[str, str]]
    """Of the first turn."""
    line: list[Snapshot] = field(default_factory=list)
    seconds: float = 0.0
    """From the second turn's beginning to the last reply, the last time that nothing interrupted them."""
    commit: float = 0.0
    """Seconds of a commit, the median."""

    def task(self, store: str, history: list[dict[str, str]], *, linger: bool = False) -> Task:
        """The rest of the conversation, for a caller who has seen this much of it."""
        said = SAID[len(history) // 2 :]
        return Task(store=store, recent_messages=self.recent, history=history, said=said, linger=linger)


@pytest.fixture(scope="module")
def talkers() -> Iterator[Talkers]:
    talkers = Talkers()
    yield talkers
    talkers.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def stores(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Callable[[], str], Callable[[str], str]]:
    """What makes a store, and what copies one."""
    if request.param == "sqlite":
        folder, numbers = tmp_path_factory.mktemp("stores"), itertools.count()

        def fresh() -> str:
            return str(folder / f"{next(numbers)}.db")

        return fresh, lambda store: str(shutil.copy(store, fresh()))

    server: Server = request.getfixturevalue("postgresql")
    return server.fresh, lambda store: server.url(server.database(template=store.rpartition("/")[2]))


@pytest.fixture(scope="module")
def references(talkers: Talkers, stores: tuple[Callable[[], str], Callable[[str], str]]) -> list[Reference]:
    return [uninterrupted(talkers, *stores, recent) for recent in RECENT]


def uninterrupted(talkers: Talkers, fresh: Callable[[], str], copy: Callable[[str], str], recent: int) -> Reference:
    begun = fresh()
    first = Task(store=begun, recent_messages=recent, history=[], said=SAID[:1], linger=False)
    reference = Reference(recent, begun, copy, [SAID[0], *replies(talkers.talk(first))])
    whole = copy(begun)
    notes = talkers.talk(reference.task(whole, reference.history))
    assert len(replies(notes)) == len(SAID) - 1
    times = {what: [n["at"] for n in notes if n["what"] == what] for what in PHASES}
    reference.seconds = length(notes)
    commits = zip(times["commit"], times["committed"], strict=True)
    reference.commit = statistics.median(end - begin for begin, end in commits)
    reference.line = line_of(whole)
    return reference


def length(notes: list[Note]) -> float:
    """Seconds from the first turn's beginning to the last reply."""
    times = [n["at"] for n in notes if n["what"] in ("turn", "reply")]
    return float(times[-1] - times[0])


def replies(notes: list[Note]) -> list[dict[str, str]]:
    return [n["reply"] for n in notes if n["what"] == "reply"]


def line_of(path: str) -> list[Snapshot]:
    """The session's line, with states, from a store that must open and be sound."""
    with SQLStore(path) as store:
        info = store.session(SESSION)
        assert info is not None
        assert info.head is not None
        line = [store.snapshot(s.id) for s in store.line(info.head)]
    if "://" in path:
        return line
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    return line


def check_line(line: list[Snapshot], reference: Reference) -> None:
    """As many whole turns as the line has, each once, and each with the state that an uninterrupted run has there."""
    expected = reference.line[: len(line)]
    assert [s.turn for s in line] == list(range(1, len(line) + 1))
    assert [s.parent for s in line] == [None, *(s.id for s in line[:-1])]
    assert [s.messages for s in line] == [s.messages for s in expected]
    assert [[e.message_id for e in s.entries[:-1]] for s in line] == [[m["id"]] for m in SAID[: len(line)]]
    assert [[e.digest for e in s.entries] for s in line] == [[e.digest for e in s.entries] for s in expected]
    for found, wanted in zip(line, expected, strict=True):
        states = [MemoryState.from_bytes(s.state, fingerprint=wanted.fingerprint).tensor for s in (found, wanted)]
        assert (states[0] - states[1]).norm() <= 1e-3 * states[1].norm()


def killed(talkers: Talkers, reference: Reference, kill_after: tuple[str, int, float]) -> list[Note]:
    """Kills a conversation, looks at what is left, and lets another process end it."""
    store = reference.copy(reference.begun)
    notes = talkers.talk(reference.task(store, reference.history, linger=True), kill_after=kill_after)
    history = list(reference.history)
    for said, reply in zip(SAID[1:], replies(notes), strict=False):
        history += [said, reply]
    left = line_of(store)
    check_line(left, reference)
    undelivered = len(left) - len(history) // 2
    assert undelivered in ((0, 1) if notes[-1]["what"] in ("commit", "committed") else (0,))
    notes[-1]["landed"] = bool(undelivered)
    if len(history) < 2 * len(SAID):
        talkers.talk(reference.task(store, history))
        line = line_of(store)
        assert len(line) == len(SAID)
        check_line(line, reference)
    return notes


def report(title: str, phases: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{title}: " + ", ".join(f"{count} in {phase}" for phase, count in phases.most_common()))


def test_fifty_kills_at_uniform_moments(
    talkers: Talkers, references: list[Reference], capsys: pytest.CaptureFixture[str]
) -> None:
    moments = random.Random(SEED)
    phases: Counter[str] = Counter()
    late = 0
    while phases.total() < KILLS:
        reference = references[phases.total() % len(references)]
        moment = ("turn", 1, moments.uniform(0, reference.seconds))
        notes = killed(talkers, reference, moment)
        if len(replies(notes)) == len(SAID) - 1:  # it was over: the machine is faster than it was
            late += 1
            reference.seconds = length(notes)
            assert late < KILLS
        else:
            phases[PHASES[notes[-1]["what"]]] += 1
    report(f"{KILLS} kills at uniform moments over turns 2 to 5, {late} more came too late", phases, capsys)
    assert phases["prefill"]
    assert phases["decode"]
    assert phases.total() > phases["prefill"] + phases["decode"]


def test_kills_aimed_at_the_commit(
    talkers: Talkers, references: list[Reference], capsys: pytest.CaptureFixture[str]
) -> None:
    """A commit takes some thousandths of a turn: uniform moments hardly ever meet one."""
    moments = random.Random(SEED)
    phases: Counter[str] = Counter()
    for number in range(AIMED):
        reference = references[number % len(references)]
        aim = ("commit", moments.randint(1, len(SAID) - 1), moments.uniform(0, 1.2 * reference.commit))
        notes = killed(talkers, reference, aim)
        landed = " (landed)" if notes[-1]["landed"] else ""
        phases[PHASES[notes[-1]["what"]] + landed] += 1
    commit = 1000 * statistics.median(r.commit for r in references)
    report(f"{AIMED} kills aimed at commits of {commit:.1f} ms", phases, capsys)
    assert phases["commit"] + phases["commit (landed)"]
