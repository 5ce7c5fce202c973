"""Compiled decoding beside itself without a memory, and beside the model's own forward."""

from collections.abc import Sequence

import torch

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel
from deltamem_agents.adapter.kv_cache import cache_name
from deltamem_agents.bench.forwards import Step, interleave, random_ids
from deltamem_agents.bench.report import BenchRow
from deltamem_agents.bench.subject import Subject
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.generation import Batch, Piece, Row, feed
from deltamem_agents.generation.slots import SlotBatch, joined

READ, WRITTEN = 1.05, 1.08
"""The project's targets: time of a step over one without memory, where tokens are only read, and written too."""
TOGETHER = 8
"""Prompts whose replies are decoded together."""


def memory_cost_rows(subject: Subject, *, prompt: int, steps: int, seed: int) -> list[BenchRow]:
    """A decoded token of one session with memory, over one without: both by compiled loops, in turns.

    Args:
        subject: the model, and its frozen twin.
        prompt: tokens in the KV cache where decoding begins.
        steps: how many tokens each decodes.
        seed: of the prompt.
    """
    ids = random_ids(subject, 1, prompt, seed=seed)
    ways = {
        "without": (_without(subject, ids), False),
        "only read": (_with(subject.model, ids), False),
        "written": (_with(subject.model, ids), True),
    }

    def step(batch: Batch | SlotBatch, write: bool) -> Step:
        return lambda: batch.step([ids[0, -1].item()], [write])  # type: ignore[list-item]

    calls = [step(batch, write) for batch, write in ways.values()]
    interleave(*calls, repeats=2)
    without, read, written = interleave(*calls, repeats=steps)
    kind = "compiled" if isinstance(ways["without"][0], SlotBatch) else "not compiled"
    name = f"decode per token, {kind}, KV cache {prompt}: with memory ÷ without"
    return [
        BenchRow.ratio(f"{name}, only read", read, without, target=READ),
        BenchRow.ratio(f"{name}, written", written, without, target=WRITTEN),
    ]


def equal_replies_rows(subject: Subject, *, replies: int, prompt: int, tokens: int, seed: int) -> list[BenchRow]:
    """How many greedy replies by compiled loops are those of the model's own forward, eight together, all written.

    Where one is not, a second row says by how much the forward's logits preferred its own token where they part.

    Args:
        subject: the model.
        replies: how many.
        prompt: tokens before each.
        tokens: of a reply.
        seed: of the prompts.
    """
    prompts, gaps = random_ids(subject, replies, prompt, seed=seed).tolist(), list[float]()
    for start in range(0, replies, TOGETHER):
        gaps += _gaps(subject.model, prompts[start : start + TOGETHER], tokens)
    name = f"greedy replies of {tokens} tokens equal to those of the model's own forward"
    equal = float(replies - len(gaps))
    rows = [BenchRow(name=name, samples=(equal,), unit=f"of {replies}", target=replies, at_least=True)]
    if gaps:
        rows.append(BenchRow(name="gap of the logits where others part", samples=tuple(gaps), unit="nats"))
    return rows


def _gaps(model: DeltaMemModel, prompts: Sequence[Sequence[int]], tokens: int) -> list[float]:
    """Of each reply that differs: the forward's logit of its own token, less that of the other, where they part."""
    fed = [[feed(model, Row(model.zero_state()), [Piece(tuple(p), write=True)]) for p in prompts] for _ in range(2)]
    chosen = [int(logits.argmax()) for _, logits in fed[0]]
    eager, fast = ([row for row, _ in one] for one in fed)
    ways = joined(model, eager, compiled=False), joined(model, fast)
    gaps: dict[int, float] = {}
    for _ in range(tokens - 1):
        own, other = (way.step(chosen, [True] * len(chosen)) for way in ways)
        chosen = own.argmax(-1).tolist()
        for place, token in enumerate(other.argmax(-1).tolist()):
            if token != chosen[place]:
                gaps.setdefault(place, float(own[place, chosen[place]] - own[place, token]))
    return list(gaps.values())


def _with(model: DeltaMemModel, ids: torch.Tensor) -> Batch | SlotBatch:
    row, _ = feed(model, Row(model.zero_state()), [Piece(tuple(ids[0].tolist()), write=True)])
    return joined(model, [row])


def _without(subject: Subject, ids: torch.Tensor) -> Batch | SlotBatch:
    """The frozen twin under an adapter that has no layers."""
    model = DeltaMemModel(subject.frozen, DeltaMemAdapter(DeltaMemConfig(key_shift=False), {}))
    cache = getattr(subject.frozen(input_ids=ids, logits_to_keep=1, use_cache=True), cache_name(subject.frozen))
    return joined(model, [Row(model.zero_state(), tuple(ids[0].tolist()), cache)])
