"""How long sessions that decode pause while somebody else's long prompt is fed: as a whole, and in parts."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from deltamem_agents.backbone.load import BUNDLED
from deltamem_agents.bench.machine import describe
from deltamem_agents.bench.report import BenchReport, BenchRow
from deltamem_agents.bench.subject import Subject, load_subject
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.messages import MessageLike

PARTS = 128
ASKED = "Tell me a long story about a lighthouse, a storm and the people of a village."
REPLY_TOKENS = 200
FILLER = "The ship carried grain, salt and timber along the coast, and came back in autumn. "


def run_pause(
    *,
    prompt: int = 4000,
    sessions: int = 8,
    repeats: int = 2,
    seed: int = 0,
    output: Path | None = None,
    model: str | Path = BUNDLED,
) -> BenchReport:
    """The worst pause between two tokens of any session while a prompt is fed, as a whole and in parts, in turn.

    Args:
        prompt: how many tokens it has, about.
        sessions: how many decode beside it.
        repeats: how often each way is measured.
        seed: of the adapter, where none ships for the model.
        output: also write the report there, as .md and .json.
        model: "bundled", or a folder.

    Raises:
        BackboneError: the model cannot be loaded.
        OSError: `output` cannot be written.
    """
    subject = load_subject(model, seed=seed)
    ways = {"whole": 2 * prompt, "parts": PARTS}
    pauses: dict[str, list[float]] = {way: [] for way in ways}
    waits: dict[str, list[float]] = {way: [] for way in ways}
    usual: list[float] = []
    for number in range(2 * repeats):
        way = list(ways)[(number + number // 2) % 2]  # each begins as often
        pause, wait, before = _measured(subject, ways[way], prompt, sessions)
        pauses[way].append(pause)
        waits[way].append(wait)
        usual.append(before)
    beside = f"{sessions} sessions beside a prompt of {prompt:,} tokens"
    rows = (
        BenchRow.ratio(f"worst pause of {beside}, in parts of {PARTS} ÷ whole", pauses["parts"], pauses["whole"]),
        BenchRow.ratio("first token of that prompt, in parts ÷ whole", waits["parts"], waits["whole"]),
        BenchRow(name=f"worst pause of {sessions} sessions by themselves", samples=tuple(usual), unit="ms"),
    )
    report = BenchReport(setup=describe(subject, model, seed=seed), rows=rows)
    if output is not None:
        report.save(output)
    return report


def _measured(subject: Subject, prefill_chunk: int, prompt: int, sessions: int) -> tuple[float, float, float]:
    """Milliseconds: the worst pause beside the prompt, the wait for its first token, the worst pause before it."""
    with DeltaMemEngine(subject.model, subject.tokenizer, store=":memory:", prefill_chunk=prefill_chunk) as engine:
        once, twice = (engine.count_tokens([_user(FILLER * times)]) for times in (1, 2))
        said = _user(FILLER * (prompt // (twice - once)))
        with _decoding(engine, sessions) as gaps:
            begun = time.perf_counter()
            while len(gaps) < 20 * sessions:
                time.sleep(0.01)
            fed = time.perf_counter()
            engine.generate([said], session="long", max_new_tokens=1)
            done = time.perf_counter()
    beside = [end - begin for begin, end in gaps if begin < done and end > fed]
    before = [end - begin for begin, end in gaps if begin >= begun and end <= fed]
    return 1000 * max(beside), 1000 * (done - fed), 1000 * max(before)


@contextmanager
def _decoding(engine: DeltaMemEngine, sessions: int) -> Iterator[list[tuple[float, float]]]:
    """Sessions that talk without end: when each two pieces of a reply that follow each other came."""
    gaps: list[tuple[float, float]] = []
    done = threading.Event()

    def talk(number: int) -> None:
        for turn in itertools.count():
            last = None
            said = [_user(f"{ASKED} {number} {turn}")]
            for item in engine.stream(said, session=f"session {number}", max_new_tokens=REPLY_TOKENS):
                now = time.perf_counter()
                if isinstance(item, str):
                    gaps.extend([] if last is None else [(last, now)])
                    last = now
                if done.is_set():
                    return

    with ThreadPoolExecutor(sessions) as threads:
        talks = [threads.submit(talk, number) for number in range(sessions)]
        try:
            yield gaps
        finally:
            done.set()
    for each in talks:
        each.result()


def _user(text: str) -> MessageLike:
    return {"role": "user", "content": text}
