"""What only a new process can tell: its peak memory, and how soon it has a session's state."""

import itertools
import json
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

import torch

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.adapter.kv_cache import cache_name
from deltamem_agents.backbone.load import load_backbone
from deltamem_agents.bench.report import BenchRow
from deltamem_agents.bench.subject import Subject, load_adapter
from deltamem_agents.generation import Piece, Row, feed
from deltamem_agents.generation.slots import joined
from deltamem_agents.ops import native_available, native_gated_delta_rule
from deltamem_agents.state import MemoryState
from deltamem_agents.store import Snapshot, open_store

Kind = Literal["frozen", "compiled", "memory"]
KINDS: tuple[Kind, ...] = ("memory", "frozen", "compiled")
FINGERPRINT = "bench"


def memory_rows(model: str | Path, *, tokens: int, repeats: int, target: float | None, seed: int) -> list[BenchRow]:
    """Peak resident memory of processes that prefill and decode, against frozen ones.

    A second row leaves out what numba and its compiler take once per process, whatever the size of the model.
    """
    peaks: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind in KINDS:
            peaks[kind] += _child("print_peak", str(model), kind, tokens, torch.get_num_threads(), seed)
    name = f"peak memory, {tokens} tokens ÷ frozen"
    return [
        BenchRow.ratio(name, peaks["memory"], peaks["frozen"], target=target, unit="MB"),
        BenchRow.ratio(f"{name} with numba loaded", peaks["memory"], peaks["compiled"], unit="MB"),
    ]


def state_rows(subject: Subject, folder: Path, *, repeats: int, target: float | None) -> list[BenchRow]:
    """Milliseconds that a new process, this package imported, takes to get a session's state from its SQLite file."""
    path = folder / "state.db"
    state = subject.model.zero_state()
    snapshot = Snapshot(
        id=uuid.uuid4().hex,
        parent=None,
        session="s",
        thread="s",
        turn=1,
        messages=0,
        thread_messages=0,
        thread_tokens=0,
        fingerprint=FINGERPRINT,
        created_at=datetime.now(UTC),
        state=state.to_bytes(fingerprint=FINGERPRINT),
        entries=(),
        kind="turn",
    )
    with open_store(path) as store:
        store.commit("s", snapshot, expected=None)
    opened, loaded = zip(*(_child("print_load", str(path)) for _ in range(repeats)), strict=True)
    return [
        BenchRow(name="state load of a session, new process", samples=loaded, unit="ms", target=target),
        BenchRow(name="opening its store before that", samples=opened, unit="ms"),
    ]


def print_peak(model: str, kind: Kind, tokens: int, threads: int, seed: int) -> None:
    """Runs in a child: prints the peak resident memory in MB after a prefill and a few decoded tokens."""
    torch.set_num_threads(threads)
    backbone, _ = load_backbone(model)
    wrapped = DeltaMemModel(backbone, load_adapter(model, backbone, seed=seed)[0]) if kind == "memory" else None
    if kind == "compiled" and native_available():
        zeros = (torch.zeros(1, 1, 4), torch.zeros(1), torch.zeros(1, 1, 1, 1), None)
        native_gated_delta_rule(*zeros, state_update_mode="standard", rankwise_gates=True, normalize_qk=True)
    ids = torch.zeros(1, tokens, dtype=torch.long)
    past, name = None, cache_name(backbone)
    with torch.inference_mode():
        if wrapped is None:
            for step in (ids, *[ids[:, :1]] * 3):
                past = getattr(backbone(step, logits_to_keep=1, use_cache=True, **{name: past}), name)
        else:
            row, _ = feed(wrapped, Row(wrapped.zero_state()), [Piece((0,) * tokens, write=True)])
            batch = joined(wrapped, [row])
            for _ in range(3):
                batch.step([0], [True])
    print(json.dumps([_peak()]))


def print_load(path: str) -> None:
    """Runs in a child: prints how many milliseconds it takes to open a store, and to have the state of session "s"."""
    times = [time.perf_counter()]
    with open_store(Path(path)) as store:
        times.append(time.perf_counter())
        info = store.session("s")
        assert info is not None
        MemoryState.from_bytes(store.snapshot(str(info.head)).state, fingerprint=FINGERPRINT)
        times.append(time.perf_counter())
    print(json.dumps([1000 * (after - before) for before, after in itertools.pairwise(times)]))


def _peak() -> float:
    """MB. Not from getrusage on Linux: that counts what the parent had when it started this process."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _child(function: str, *args: object) -> list[float]:
    code = f"from {__name__} import {function}; import json, sys; {function}(*json.loads(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, json.dumps(args)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a process of the benchmark failed ({function}{args}):\n{done.stderr[-2000:]}")
    return cast("list[float]", json.loads(done.stdout.splitlines()[-1]))
