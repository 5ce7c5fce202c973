"""Forwards with memory against forwards of the frozen backbone, in turns; and the scan by itself."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel
from deltamem_agents.adapter.kv_cache import cache_name
from deltamem_agents.bench.report import BenchRow, Point, Series
from deltamem_agents.bench.subject import Subject, twin
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.generation import Batch, Piece, Row, feed
from deltamem_agents.ops import chunked_delta_rule, naive_delta_rule, native_available, native_delta_rule

Step = Callable[[], object]


def interleave(*steps: Step, repeats: int) -> list[list[float]]:
    """Milliseconds of each call of some steps that take turns; who begins alternates."""
    times: list[list[float]] = [[] for _ in steps]
    for number in range(repeats):
        for place in range(len(steps)):
            which = (number + place) % len(steps)
            times[which].append(clock(steps[which]))
    return times


def clock(step: Step) -> float:
    """Milliseconds of one call, wall time."""
    start = time.perf_counter()
    step()
    return 1000 * (time.perf_counter() - start)


def prefill_series(subject: Subject, sizes: Sequence[int], *, repeats: int, seed: int) -> Series:
    """Prompts, logits of their last position only, every token written."""
    prompts = random_ids(subject, 1, max(sizes), seed=seed)

    def run(tokens: int, *, repeats: int) -> Point:
        ids = prompts[:, :tokens]
        with torch.inference_mode():
            memory, frozen = interleave(
                lambda: subject.model(ids, logits_to_keep=1),
                lambda: subject.frozen(input_ids=ids, logits_to_keep=1, use_cache=True),
                repeats=repeats,
            )
        return Point(size=tokens, tokens=tokens, memory=tuple(memory), frozen=tuple(frozen))

    run(32, repeats=1)  # first calls set things up
    points = tuple(run(size, repeats=repeats) for size in sizes)
    return Series(name="Prefill by prompt length", axis="prompt, tokens", points=points)


def decode_steps(subject: Subject, *, cache: int, write: bool, seed: int) -> tuple[Step, Step]:
    """One token more at each call, on KV caches of `cache` tokens: with memory, and frozen."""
    ids = random_ids(subject, 1, cache + 1, seed=seed)
    prompt, token = ids[:, :-1], ids[:, -1:]
    name = cache_name(subject.frozen)
    with torch.inference_mode():
        past = {name: getattr(subject.frozen(input_ids=prompt, logits_to_keep=1, use_cache=True), name)}
        out = subject.model(prompt, logits_to_keep=1)

    def memory() -> None:
        nonlocal out
        with torch.inference_mode():
            out = subject.model(
                token,
                past_key_values=out.past_key_values,
                state=out.state,
                write=write,
                carry=out.carry,
                logits_to_keep=1,
            )

    def frozen() -> None:
        with torch.inference_mode():
            subject.frozen(input_ids=token, logits_to_keep=1, use_cache=True, **past)

    return memory, frozen


def decode_series(subject: Subject, caches: Sequence[int], *, repeats: int, write: bool, seed: int) -> Series:
    """Decoding, a token a call, batch 1."""

    def run(cache: int) -> Point:
        steps = decode_steps(subject, cache=cache, write=write, seed=seed)
        interleave(*steps, repeats=2)
        memory, frozen = interleave(*steps, repeats=repeats)
        return Point(size=cache, tokens=1, memory=tuple(memory), frozen=tuple(frozen))

    name = f"Decode by length, tokens {'written' if write else 'only read'}"
    return Series(name=name, axis="KV cache, tokens", points=tuple(run(cache) for cache in caches))


MECHANISMS = {
    "gated on o": DeltaMemConfig(),
    "ungated on q and o": DeltaMemConfig(delta_heads=("q", "o"), key_shift=False, read_gate="off", gate_floor=0.0),
}
"""The memory as it is by default, and as it was published: fresh adapters of one size."""


def mechanism_rows(subject: Subject, *, tokens: int, cache: int, repeats: int, seed: int) -> list[BenchRow]:
    """What keys that see the token before, read gates and floors cost, on o: against none of them, on q and o.

    Both are fresh adapters of the same size, in turns with the frozen backbone: decoding, written and only read, on KV
    caches of `cache` tokens, and a prefill of `tokens`.
    """
    subjects = []
    for config in MECHANISMS.values():
        backbone = twin(subject.frozen)
        adapter = DeltaMemAdapter.initialize(config, backbone, seed=seed)
        subjects.append(replace(subject, model=DeltaMemModel(backbone, adapter)))
    ids = random_ids(subject, 1, tokens, seed=seed)

    def prefill(model: DeltaMemModel) -> Step:
        return lambda: model(ids, logits_to_keep=1)

    written, read = ([decode_steps(s, cache=cache, write=w, seed=seed) for s in subjects] for w in (True, False))
    cases: dict[str, list[Step]] = {
        "decode per token, written": [*(memory for memory, _ in written), written[0][1]],
        "decode per token, only read": [*(memory for memory, _ in read), read[0][1]],
        f"prefill of {tokens} tokens": [
            *(prefill(s.model) for s in subjects),
            lambda: subject.frozen(input_ids=ids, logits_to_keep=1, use_cache=True),
        ],
    }
    rows, (ours, theirs) = list[BenchRow](), MECHANISMS
    for name, steps in cases.items():
        with torch.inference_mode():
            interleave(*steps, repeats=1)
            count = repeats if name.startswith("decode") else max(3, repeats // 10)
            gated, published, frozen = interleave(*steps, repeats=count)
        rows.append(BenchRow.ratio(f"{name}, {ours} ÷ {theirs}", gated, published))
        rows.append(BenchRow.ratio(f"{name}, {ours} ÷ frozen", gated, frozen))
        rows.append(BenchRow.ratio(f"{name}, {theirs} ÷ frozen", published, frozen))
    return rows


def batch_series(subject: Subject, sessions: Sequence[int], *, cache: int, repeats: int, seed: int) -> Series:
    """Sessions decoded together, each in its own memory, against as many rows of the frozen backbone."""
    prompts = random_ids(subject, max(sessions), cache, seed=seed).tolist()

    def start(rows: Sequence[Row]) -> tuple[Step, Step]:
        batch = Batch(subject.model, copy.deepcopy(rows))  # rows are spent by their batch
        past = {cache_name(subject.frozen): copy.deepcopy(batch.cache)}
        ids, write = [row.ids[-1] for row in rows], [True] * len(rows)
        token = torch.tensor(ids).unsqueeze(1)

        def frozen() -> None:
            subject.frozen(input_ids=token, logits_to_keep=1, use_cache=True, **past)

        return lambda: batch.step(ids, write), frozen

    with torch.inference_mode():
        zero = subject.model.zero_state()
        rows = [feed(subject.model, Row(zero), [Piece(tuple(prompt), write=True)])[0] for prompt in prompts]
        steps = [step for number in sessions for step in start(rows[:number])]
        interleave(*steps, repeats=1)
        times = [tuple(one) for one in interleave(*steps, repeats=repeats)]
    points = (
        Point(size=number, tokens=number, memory=memory, frozen=plain)
        for number, memory, plain in zip(sessions, times[::2], times[1::2], strict=True)
    )
    return Series(name=f"Sessions decoded together, KV cache {cache}", axis="sessions", points=tuple(points))


def scan_rows(subject: Subject, tokens: int, *, repeats: int, seed: int) -> list[BenchRow]:
    """One layer's scan by each of its paths, batch 1, in the adapter's size."""
    config = subject.model.adapter.config
    generator = torch.Generator().manual_seed(seed)
    inputs = [
        torch.rand(1, tokens, config.num_state_heads, config.rank, generator=generator) * 0.3 for _ in range(6)
    ]
    state = torch.zeros(1, config.num_state_heads, config.rank, config.rank)
    paths: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"naive": naive_delta_rule, "chunked": chunked_delta_rule}
    if native_available():
        paths["native"] = native_delta_rule
    rows = []
    for name, path in paths.items():
        with torch.inference_mode():
            path(*(x[:, :2] for x in inputs), state)
            times = [clock(lambda path=path: path(*inputs, state)) for _ in range(repeats)]  # type: ignore[misc]
        rows.append(BenchRow(name=f"scan of {tokens} tokens, one layer, {name}", samples=tuple(times), unit="ms"))
    return rows


def profiles(subject: Subject, *, cache: int, steps: int, seed: int) -> dict[str, str]:
    """Where decoding spends its time, with memory and without."""
    memory, frozen = decode_steps(subject, cache=cache, write=True, seed=seed)
    tables = {}
    for name, step in {"decode with memory": memory, "decode, frozen": frozen}.items():
        step()
        with profile(activities=[ProfilerActivity.CPU]) as run:
            for _ in range(steps):
                step()
        tables[f"{name}, {steps} tokens"] = str(run.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))
    return tables


def random_ids(subject: Subject, rows: int, tokens: int, *, seed: int) -> Tensor:
    """Long [rows, tokens], of ordinary tokens mostly."""
    vocabulary = int(subject.frozen.config.get_text_config().vocab_size)
    return torch.randint(vocabulary // 8, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))
