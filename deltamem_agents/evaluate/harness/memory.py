"""Which memory the harness' model reads."""

import random
from typing import Literal, get_args

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import SessionNotFoundError
from deltamem_agents.evaluate.asking import told_sessions
from deltamem_agents.evaluate.cases import Case
from deltamem_agents.evaluate.rows import ROWS
from deltamem_agents.state import MemoryState
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.facts import Values, training_vocabulary
from deltamem_agents.train.talk import Talk

Memory = Literal["none", "empty", "full"]
MEMORIES: tuple[Memory, ...] = get_args(Memory)
"""No memory at all, one that nothing was told, and one full of facts and talk. Any other name is a session's."""


def chosen_memory(engine: DeltaMemEngine, memory: Memory | str, *, seed: int) -> MemoryState | None:
    """One of `MEMORIES`, or that of a session in the engine's store.

    Raises:
        SessionNotFoundError: there is no such session.
        FingerprintError: it was written under another backbone or adapter.
    """
    if memory == "none":
        return None
    if memory == "empty":
        return engine.model.zero_state()
    if memory == "full":
        return full_memory(engine, seed=seed)
    try:
        return engine.state(memory)
    except SessionNotFoundError as error:
        raise SessionNotFoundError(
            f"memory is {memory!r}, expected one of {', '.join(MEMORIES)} or a session in this store: {error}"
        ) from error


def full_memory(engine: DeltaMemEngine, *, seed: int = 0) -> MemoryState:
    """The memory of a session that was told eight facts and 256 tokens of talk, as for the perplexity row.

    The session is named `evaluate-0`, and forgotten.
    """
    tokenizer = engine.tokenizer
    talk = Talk(count=lambda said: len(tokenizer.encode(said)) + 5)
    source = TrainingData(Values(training_vocabulary(tokenizer)), talk)
    mix = ROWS["perplexity"].mixes[0]
    case = Case(source.generate(mix, random.Random(f"harness {seed}"), split="test"))
    with told_sessions(engine, [case]) as (name,):
        return engine.state(name)
