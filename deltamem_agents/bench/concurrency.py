"""Many sessions at once against the same turns one by one: from threads, and in one call."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deltamem_agents.bench.forwards import interleave
from deltamem_agents.bench.report import BenchRow
from deltamem_agents.bench.subject import Subject
from deltamem_agents.engine import DeltaMemEngine

RECENT = 4
Say = Callable[[Sequence[str], str], list[int]]
"""Says something in each of some sessions; gives how many tokens each reply has."""


def threads_row(subject: Subject, folder: Path, *, callers: int, tokens: int, repeats: int) -> BenchRow:
    """As many threads as sessions, each waiting for its own reply."""
    with _engine(subject, folder / "threads.db") as engine, ThreadPoolExecutor(callers) as threads:
        alone = _one_by_one(engine, tokens)

        def together(sessions: Sequence[str], text: str) -> list[int]:
            return [count for counts in threads.map(lambda name: alone([name], text), sessions) for count in counts]

        name = f"{callers} threads on {callers} sessions ÷ one by one, tokens/s"
        return _row(name, alone, together, sessions=callers, repeats=repeats)


def batch_call_row(subject: Subject, folder: Path, *, sessions: int, tokens: int, repeats: int) -> BenchRow:
    """`DeltaMemEngine.batch`, prompts and commits included."""
    with _engine(subject, folder / "batch.db") as engine:

        def together(names: Sequence[str], text: str) -> list[int]:
            said = [[{"role": "user", "content": text}]] * len(names)
            turns = engine.batch(said, sessions=list(names), max_new_tokens=tokens)
            return [turn.usage.completion_tokens for turn in turns]

        name = f"{sessions} sessions in one `batch` ÷ one by one, tokens/s"
        return _row(name, _one_by_one(engine, tokens), together, sessions=sessions, repeats=repeats)


def _engine(subject: Subject, path: Path) -> DeltaMemEngine:
    return DeltaMemEngine(subject.model, subject.tokenizer, store=path, recent_messages=RECENT)


def _one_by_one(engine: DeltaMemEngine, tokens: int) -> Say:
    def say(sessions: Sequence[str], text: str) -> list[int]:
        said = [{"role": "user", "content": text}]
        turns = (engine.generate(said, session=name, max_new_tokens=tokens) for name in sessions)
        return [turn.usage.completion_tokens for turn in turns]

    return say


def _row(name: str, alone: Say, together: Say, *, sessions: int, repeats: int) -> BenchRow:
    """Milliseconds a token, one by one over together. Both ways have their own sessions, at the same turn."""
    counts: tuple[list[int], list[int]] = ([], [])

    def step(which: int) -> None:
        names = [f"{'one by one' if which == 0 else 'together'} {number}" for number in range(sessions)]
        text = f"Round {len(counts[which])}: tell me what you see on the shelf."
        counts[which].append(sum((alone, together)[which](names, text)))

    interleave(lambda: step(0), lambda: step(1), repeats=1)  # first calls set things up
    times = interleave(lambda: step(0), lambda: step(1), repeats=repeats)
    slow, fast = ([t / n for t, n in zip(times[i], counts[i][1:], strict=True)] for i in (0, 1))
    return BenchRow.ratio(name, slow, fast, unit="ms a token")
