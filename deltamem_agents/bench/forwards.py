"""Forwards with memory against forwards of the frozen backbone, in turns; and the scan by itself."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from deltamem_agents.bench.report import BenchRow
from deltamem_agents.bench.subject import Subject
from deltamem_agents.generation import Batch, Piece, Row, feed
from deltamem_agents.ops import chunked_delta_rule, naive_delta_rule, native_available, native_delta_rule

Step = Callable[[], object]


def interleave(first: Step, second: Step, *, repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each call of two steps that take turns; who begins alternates."""
    times: tuple[list[float], list[float]] = ([], [])
    steps = (first, second)
    for number in range(repeats):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            times[which].append(clock(steps[which]))
    return times


def clock(step: Step) -> float:
    """Milliseconds of one call, wall time."""
    start = time.perf_counter()
    step()
    return 1000 * (time.perf_counter() - start)


def prefill_row(subject: Subject, tokens: int, *, repeats: int, target: float | None, seed: int) -> BenchRow:
    """A prompt, logits of its last position only, every token written."""
    ids = random_ids(subject, 1, tokens, seed=seed)

    def run(ids: Tensor, *, repeats: int) -> tuple[list[float], list[float]]:
        return interleave(
            lambda: subject.model(ids, logits_to_keep=1),
            lambda: subject.frozen(input_ids=ids, logits_to_keep=1, use_cache=True),
            repeats=repeats,
        )

    with torch.inference_mode():
        run(ids[:, :32], repeats=1)  # first calls set things up
        times = run(ids, repeats=repeats)
    return BenchRow.ratio(f"prefill of {tokens} tokens ÷ frozen", *times, target=target)


def decode_steps(subject: Subject, *, cache: int, write: bool, seed: int) -> tuple[Step, Step]:
    """One token more at each call, on KV caches of `cache` tokens: with memory, and frozen."""
    ids = random_ids(subject, 1, cache + 1, seed=seed)
    prompt, token = ids[:, :-1], ids[:, -1:]
    with torch.inference_mode():
        past = subject.frozen(input_ids=prompt, logits_to_keep=1, use_cache=True).past_key_values
        out = subject.model(prompt, logits_to_keep=1)

    def memory() -> None:
        nonlocal out
        with torch.inference_mode():
            out = subject.model(
                token, past_key_values=out.past_key_values, state=out.state, write=write, logits_to_keep=1
            )

    def frozen() -> None:
        with torch.inference_mode():
            subject.frozen(input_ids=token, past_key_values=past, logits_to_keep=1, use_cache=True)

    return memory, frozen


def decode_row(
    subject: Subject, *, cache: int, repeats: int, write: bool, target: float | None, seed: int
) -> BenchRow:
    """Decoding, per token, batch 1."""
    memory, frozen = decode_steps(subject, cache=cache, write=write, seed=seed)
    interleave(memory, frozen, repeats=2)
    times = interleave(memory, frozen, repeats=repeats)
    how = "written" if write else "only read"
    return BenchRow.ratio(f"decode per token, {how}, KV cache {cache} ÷ frozen", *times, target=target)


def batch_row(
    subject: Subject, *, sessions: int, cache: int, repeats: int, target: float | None, seed: int
) -> BenchRow:
    """Tokens per second of sessions decoded together, against one alone."""

    def start(rows: int) -> Step:
        ids = random_ids(subject, rows, cache, seed=seed).tolist()
        with torch.inference_mode():
            zero = subject.model.zero_state()
            fed = [feed(subject.model, Row(zero), [Piece(tuple(row), write=True)])[0] for row in ids]
            batch = Batch(subject.model, fed)
        token, write = [ids[0][0]] * rows, [True] * rows
        return lambda: batch.step(token, write)

    with torch.inference_mode():
        together, alone = start(sessions), start(1)
        interleave(together, alone, repeats=1)
        many, one = interleave(together, alone, repeats=repeats)
    name = f"{sessions} sessions decoded together ÷ 1, tokens/s"
    return BenchRow.ratio(name, one, many, factor=sessions, target=target, at_least=True)


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
