"""The benchmark as a whole."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from deltamem_agents.backbone.load import BUNDLED
from deltamem_agents.bench.concurrency import batch_call_row, threads_row
from deltamem_agents.bench.forwards import (
    batch_series,
    decode_series,
    mechanism_rows,
    prefill_series,
    profiles,
    scan_rows,
)
from deltamem_agents.bench.machine import describe
from deltamem_agents.bench.processes import memory_rows, state_rows
from deltamem_agents.bench.report import BenchReport, BenchRow, Series
from deltamem_agents.bench.subject import Subject, load_subject
from deltamem_agents.bench.turns import history_row, turn_row

PREFILL, DECODE, TOGETHER, TURNS, HISTORY, STATE_MS, PEAK = 1.05, 1.10, 4.0, 1.05, 5.0, 20.0, 1.02
"""The project's targets, ratios unless they name a unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured."""

    prefill: tuple[int, ...]
    """Tokens of the prompts; the last has the target."""
    prefill_repeats: int
    caches: tuple[int, ...]
    """Tokens in the KV cache where decoding begins."""
    cache: int
    """The one that has the targets, and where sessions decode together."""
    decode_repeats: int
    together: tuple[int, ...]
    """How many sessions decode together; the first is 1."""
    sessions: int
    """The one of them that has the target."""
    batch_repeats: int
    early: int
    """A turn of a conversation, and a `late` one that should take no longer."""
    late: int
    turn_repeats: int
    callers: int
    """Threads that talk at once, each in a session of its own."""
    reply_tokens: int
    """At most, in what they are told."""
    caller_repeats: int
    scan: int
    """Tokens of the scan."""
    process_tokens: int
    """Tokens of the prompt in processes whose memory is measured."""
    process_repeats: int


FULL = Sizes(
    prefill=(128, 512, 2048),
    prefill_repeats=5,
    caches=(64, 256, 1024),
    cache=256,
    decode_repeats=60,
    together=(1, 2, 4, 8, 16),
    sessions=8,
    batch_repeats=20,
    early=10,
    late=100,
    turn_repeats=10,
    callers=20,
    reply_tokens=16,
    caller_repeats=3,
    scan=2048,
    process_tokens=512,
    process_repeats=5,
)
QUICK = Sizes(
    prefill=(128, 512),
    prefill_repeats=3,
    caches=(64, 256),
    cache=64,
    decode_repeats=15,
    together=(1, 8),
    sessions=8,
    batch_repeats=5,
    early=4,
    late=12,
    turn_repeats=4,
    callers=4,
    reply_tokens=8,
    caller_repeats=1,
    scan=256,
    process_tokens=64,
    process_repeats=1,
)
"""Smaller and fewer: shows that everything runs, and roughly how fast."""


def run_bench(
    *,
    quick: bool = False,
    profile: bool = False,
    seed: int = 0,
    output: Path | None = None,
    model: str | Path = BUNDLED,
) -> BenchReport:
    """Measures the memory against the frozen backbone on this machine: some minutes, or about one with `quick`.

    Args:
        quick: fewer and smaller cases.
        profile: also run torch's profiler over decoding.
        seed: of the random prompts, and of the adapter where none ships for the model.
        output: also write the report there, as .md and .json.
        model: "bundled", or a folder.

    Raises:
        BackboneError: the model cannot be loaded.
        OSError: `output` cannot be written.
    """
    sizes = QUICK if quick else FULL
    subject = load_subject(model, seed=seed)
    series, rows = _forwards(subject, sizes, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        rows += _session_rows(subject, Path(folder), sizes)
    rows += memory_rows(model, tokens=sizes.process_tokens, repeats=sizes.process_repeats, target=PEAK, seed=seed)
    rows += mechanism_rows(
        subject, tokens=sizes.prefill[-1], cache=sizes.cache, repeats=sizes.decode_repeats, seed=seed
    )
    rows += scan_rows(subject, sizes.scan, repeats=3, seed=seed)
    tables = profiles(subject, cache=sizes.cache, steps=8, seed=seed) if profile else {}
    setup = {**describe(subject, model, seed=seed), "mode": "quick" if quick else "full"}
    return _saved(BenchReport(setup=setup, rows=tuple(rows), series=series, profiles=tables), output)


def run_concurrency(
    *, quick: bool = False, seed: int = 0, output: Path | None = None, model: str | Path = BUNDLED
) -> BenchReport:
    """Only the rows about many sessions at once; arguments and errors are those of `run_bench`."""
    subject = load_subject(model, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        rows = _concurrency_rows(subject, Path(folder), QUICK if quick else FULL)
    setup = {**describe(subject, model, seed=seed), "mode": "quick" if quick else "full"}
    return _saved(BenchReport(setup=setup, rows=tuple(rows)), output)


def _saved(report: BenchReport, output: Path | None) -> BenchReport:
    if output is not None:
        report.save(output)
    return report


def _forwards(subject: Subject, sizes: Sizes, *, seed: int) -> tuple[tuple[Series, ...], list[BenchRow]]:
    """The series, and the rows that have targets: each is at one of their points."""
    longest, cache, repeats = sizes.prefill[-1], sizes.cache, sizes.decode_repeats
    prefill = prefill_series(subject, sizes.prefill, repeats=sizes.prefill_repeats, seed=seed)
    decode = decode_series(subject, sizes.caches, repeats=repeats, write=True, seed=seed)
    reading = decode_series(subject, (cache,), repeats=repeats, write=False, seed=seed)
    batch = batch_series(subject, sizes.together, cache=cache, repeats=sizes.batch_repeats, seed=seed)
    rows = [prefill.at(longest).over_frozen(f"prefill of {longest} tokens ÷ frozen", target=PREFILL)]
    for how, steps in {"written": decode, "only read": reading}.items():
        name = f"decode per token, {how}, KV cache {cache} ÷ frozen"
        rows.append(steps.at(cache).over_frozen(name, target=DECODE))
    count, name = sizes.sessions, f"{sizes.sessions} sessions decoded together ÷ 1, tokens/s"
    alone, many = batch.at(1).memory, batch.at(count).memory
    rows.append(BenchRow.ratio(name, alone, many, factor=count, target=TOGETHER, at_least=True))
    return (prefill, decode, batch), rows


def _session_rows(subject: Subject, folder: Path, sizes: Sizes) -> list[BenchRow]:
    early, late = sizes.early, sizes.late
    turns = turn_row(subject, folder, early=early, late=late, repeats=sizes.turn_repeats, target=TURNS)
    states = state_rows(subject, folder, repeats=sizes.process_repeats, target=STATE_MS)
    history = history_row(subject, few=500, many=2000, repeats=sizes.turn_repeats, target=HISTORY)
    return [turns, history, *_concurrency_rows(subject, folder, sizes), *states]


def _concurrency_rows(subject: Subject, folder: Path, sizes: Sizes) -> list[BenchRow]:
    tokens, repeats = sizes.reply_tokens, sizes.caller_repeats
    return [
        threads_row(subject, folder, callers=sizes.callers, tokens=tokens, repeats=repeats),
        batch_call_row(subject, folder, sessions=sizes.sessions, tokens=tokens, repeats=repeats),
    ]
