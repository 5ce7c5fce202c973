"""Harm: how much worse the model predicts unrelated text while it reads a full memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.asking import told_sessions
from deltamem_agents.evaluate.cases import Case
from deltamem_agents.evaluate.prose import PROSE
from deltamem_agents.state import MemoryState

CHUNK = 128
"""Tokens read at once."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One piece of text, read with a full memory and with an empty one: mean nats a token."""

    seed: int
    full: float
    empty: float


def text_chunks(engine: DeltaMemEngine, path: Path | None) -> list[list[int]]:
    """Token ids of a text file in pieces of equal length, the rest left out; None: of the built-in text.

    Raises:
        ConfigError: the file cannot be read, or is too short.
    """
    try:
        text = PROSE if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): expected a UTF-8 text file; check the path") from error
    ids = engine.tokenizer.encode(text, add_special_tokens=False)
    chunks = [ids[start : start + CHUNK] for start in range(0, len(ids) - CHUNK + 1, CHUNK)]
    if not chunks:
        raise ConfigError(f"{path} has {len(ids)} tokens, expected {CHUNK} or more: give a longer text")
    return chunks


def read_chunks(
    engine: DeltaMemEngine, cases: Sequence[Case], chunks: Sequence[Sequence[int]], *, start: int, seed: int
) -> list[Reading]:
    """Tells the cases and has each memory read over one piece of text, the pieces in turn from number `start`."""
    readings = []
    with told_sessions(engine, cases) as names:
        for number, name in enumerate(names):
            chunk, state = chunks[(start + number) % len(chunks)], engine.state(name)
            full, empty = (engine.on_session(name, partial(_nats, engine, chunk, s)) for s in (state, None))
            readings.append(Reading(seed, full, empty))
    return readings


def _nats(engine: DeltaMemEngine, ids: Sequence[int], state: MemoryState | None) -> float:
    """Mean negative log-likelihood of a text's tokens but the first. The text itself is not written."""
    model = engine.model
    row = torch.tensor([ids], device=model.device)
    state = None if state is None else state.to(model.device)
    logits = model(row, state=state, write=False, use_cache=False).logits[0, :-1].float()
    return float(F.cross_entropy(logits, row[0, 1:]))
