"""Many sessions at once against the same turns one by one: from threads, from tasks, and in one call."""

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from deltamem_agents.backbone.load import BUNDLED
from deltamem_agents.bench.forwards import interleave
from deltamem_agents.bench.machine import describe
from deltamem_agents.bench.report import BenchReport, BenchRow
from deltamem_agents.bench.subject import Subject, load_subject
from deltamem_agents.engine import DeltaMemEngine

RECENT = 4
WAYS = ("one by one", "together")
Say = Callable[[Mapping[str, str]], list[int]]
"""Says something in each of some sessions; gives how many tokens each reply has."""


def run_users(
    *,
    users: int,
    asynchronous: bool = False,
    tokens: int = 16,
    repeats: int = 3,
    seed: int = 0,
    output: Path | None = None,
    model: str | Path = BUNDLED,
) -> BenchReport:
    """So many users at once, each telling a secret: how much faster it is than one by one, and whose state is whose.

    Args:
        users: how many, each in a session of its own.
        asynchronous: tasks of one event loop; else threads.
        tokens: of a reply, at most.
        repeats: how many rounds are measured, after one that sets things up.
        seed: of the adapter, where none ships for the model.
        output: also write the report there, as .md and .json.
        model: "bundled", or a folder.

    Raises:
        BackboneError: the model cannot be loaded.
        OSError: `output` cannot be written.
    """
    subject = load_subject(model, seed=seed)
    with tempfile.TemporaryDirectory() as folder, _engine(subject, Path(folder) / "users.db") as engine:
        way = _tasks if asynchronous else _threads
        kind = "tasks" if asynchronous else "threads"
        name = f"{users} {kind} on {users} sessions ÷ one by one, tokens/s"
        row = _row(name, _one_by_one(engine, tokens), way(engine, tokens, users), sessions=users, repeats=repeats)
        rows = (row, _own_states_row(engine, users))
    report = BenchReport(setup=describe(subject, model, seed=seed), rows=rows)
    if output is not None:
        report.save(output)
    return report


def threads_row(subject: Subject, folder: Path, *, callers: int, tokens: int, repeats: int) -> BenchRow:
    """As many threads as sessions, each waiting for its own reply."""
    with _engine(subject, folder / "threads.db") as engine:
        name = f"{callers} threads on {callers} sessions ÷ one by one, tokens/s"
        together = _threads(engine, tokens, callers)
        return _row(name, _one_by_one(engine, tokens), together, sessions=callers, repeats=repeats)


def batch_call_row(subject: Subject, folder: Path, *, sessions: int, tokens: int, repeats: int) -> BenchRow:
    """`DeltaMemEngine.batch`, prompts and commits included."""
    with _engine(subject, folder / "batch.db") as engine:
        name = f"{sessions} sessions in one `batch` ÷ one by one, tokens/s"
        return _row(name, _one_by_one(engine, tokens), _batch(engine, tokens), sessions=sessions, repeats=repeats)


def batch_turns_row(
    subject: Subject, folder: Path, *, sessions: int, tokens: int, repeats: int, target: float
) -> BenchRow:
    """`DeltaMemEngine.batch`, prompts and commits included, by the turns it makes, however long the replies are."""
    with _engine(subject, folder / "turns.db") as engine:
        name = f"{sessions} sessions in one `batch` ÷ one by one, turns/s"
        alone, together = (_turns(way(engine, tokens)) for way in (_one_by_one, _batch))
        return _row(name, alone, together, sessions=sessions, repeats=repeats, each="turn", target=target)


def _turns(say: Say) -> Say:
    return lambda said: [1 for _ in say(said)]


def _batch(engine: DeltaMemEngine, tokens: int) -> Say:
    def say(said: Mapping[str, str]) -> list[int]:
        conversations = [[{"role": "user", "content": text}] for text in said.values()]
        turns = engine.batch(conversations, sessions=list(said), max_new_tokens=tokens)
        return [turn.usage.completion_tokens for turn in turns]

    return say


def _engine(subject: Subject, path: Path) -> DeltaMemEngine:
    return DeltaMemEngine(subject.model, subject.tokenizer, store=path, recent_messages=RECENT)


def _one_by_one(engine: DeltaMemEngine, tokens: int) -> Say:
    def say(said: Mapping[str, str]) -> list[int]:
        return [_turn(engine, session, text, tokens) for session, text in said.items()]

    return say


def _threads(engine: DeltaMemEngine, tokens: int, callers: int) -> Say:
    def say(said: Mapping[str, str]) -> list[int]:
        with ThreadPoolExecutor(callers) as threads:
            return list(threads.map(lambda item: _turn(engine, item[0], item[1], tokens), said.items()))

    return say


def _tasks(engine: DeltaMemEngine, tokens: int, _: int) -> Say:
    async def turn(session: str, text: str) -> int:
        asked = [{"role": "user", "content": text}]
        return (await engine.agenerate(asked, session=session, max_new_tokens=tokens)).usage.completion_tokens

    async def all_of_it(said: Mapping[str, str]) -> list[int]:
        return await asyncio.gather(*(turn(session, text) for session, text in said.items()))

    return lambda said: asyncio.run(all_of_it(said))


def _turn(engine: DeltaMemEngine, session: str, text: str, tokens: int) -> int:
    turn = engine.generate([{"role": "user", "content": text}], session=session, max_new_tokens=tokens)
    return turn.usage.completion_tokens


def _row(
    name: str,
    alone: Say,
    together: Say,
    *,
    sessions: int,
    repeats: int,
    each: str = "token",
    target: float | None = None,
) -> BenchRow:
    """Milliseconds of a token or turn, one by one over together. Both ways have own sessions, at the same turn."""
    counts: tuple[list[int], list[int]] = ([], [])

    def step(which: int) -> None:
        round_ = len(counts[which])
        said = {_session(which, number): _text(round_, number) for number in range(sessions)}
        counts[which].append(sum((alone, together)[which](said)))

    interleave(lambda: step(0), lambda: step(1), repeats=1)  # first calls set things up
    times = interleave(lambda: step(0), lambda: step(1), repeats=repeats)
    slow, fast = ([t / n for t, n in zip(times[i], counts[i][1:], strict=True)] for i in (0, 1))
    return BenchRow.ratio(name, slow, fast, target=target, at_least=target is not None, unit=f"ms a {each}")


def _own_states_row(engine: DeltaMemEngine, users: int) -> BenchRow:
    """How many states are nearest to that of the user who was told the same alone: a mixed-up one would not be."""
    alone, together = (
        [engine.state(_session(which, number)).tensor.flatten() for number in range(users)] for which in (0, 1)
    )
    nearest = [min(range(users), key=lambda n: float((state - alone[n]).norm())) for state in together]
    own = sum(found == number for number, found in enumerate(nearest))
    name = "states nearest to their own user's"
    return BenchRow(name=name, samples=(float(own),), unit=f"of {users}", target=users, at_least=True)


def _session(which: int, number: int) -> str:
    return f"{WAYS[which]} {number}"


def _text(round_: int, number: int) -> str:
    """Each user's own, of one length."""
    return f"Round {round_}: my secret is {sha256(f'{round_} {number}'.encode()).hexdigest()[:8]}."
