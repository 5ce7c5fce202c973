"""Memories are the engine's own; controls are really other ones."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents import DeltaMemEngine
from deltamem_agents.evaluate.suites import Suite
from deltamem_agents.evaluate.suites.memories import Memories, shuffled
from deltamem_agents.state import MemoryState


def test_a_conversation_is_absorbed_once_part_by_part(engine: DeltaMemEngine, locomo: Suite) -> None:
    talk = locomo.conversations[0]
    memories = Memories(engine, prefix="x")
    whole = memories.after(talk)
    for part in talk.parts:
        engine.absorb(part, session="by hand")
    assert torch.allclose(whole.tensor, engine.state("by hand").tensor, atol=1e-6)
    name = memories.session(talk)
    assert [len(turn.entries) for turn in engine.session(name).log()] == [3, 2, 1]
    again = Memories(engine, prefix="x").after(talk)
    assert again.tensor.equal(whole.tensor)
    assert len(engine.session(name).log()) == 3, "a run that goes on absorbs nothing twice"


def test_the_memory_before_a_message(engine: DeltaMemEngine, locomo: Suite) -> None:
    talk = locomo.conversations[0]
    memories = Memories(engine, prefix="x")
    before = [memories.before(talk, position) for position in range(len(talk.messages) + 1)]
    assert not before[0].tensor.any()
    assert before[6].tensor.equal(memories.after(talk).tensor)
    engine.absorb(talk.parts[0], session="by hand")
    assert torch.allclose(before[3].tensor, engine.state("by hand").tensor, atol=1e-6)
    engine.absorb(talk.parts[1][:1], session="by hand")
    assert torch.allclose(before[4].tensor, engine.state("by hand").tensor, atol=1e-6)
    engine.absorb(talk.parts[0][:2], session="a beginning")
    assert torch.allclose(before[2].tensor, engine.state("a beginning").tensor, atol=1e-6)
    assert [info.name for info in engine.sessions(prefix="x")] == [memories.session(talk)], "nothing else stays"


@given(st.integers(0, 1000))
def test_a_shuffled_memory_has_the_same_numbers_elsewhere(seed: int) -> None:
    state = MemoryState(torch.randn(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)))
    other = shuffled(state, seed=seed)
    assert other.tensor.equal(shuffled(state, seed=seed).tensor)
    for mine, theirs in zip(state.tensor.reshape(-1, 64), other.tensor.reshape(-1, 64), strict=True):
        assert mine.sort().values.equal(theirs.sort().values)
        assert not mine.equal(theirs)
