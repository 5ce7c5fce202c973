"""`DeltaMemoryBlock` in LlamaIndex's own `Memory`: what its queue has no room for goes to the state, once."""

import asyncio

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import Memory

from deltamem_agents import DeltaMemEngine, StoreError
from llama_index_deltamem import DeltaMemLLM, DeltaMemoryBlock
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for
from tests.engine.faults import FailingStore
from tests.llama_index.lines import Said, assistant, spoken, spoken_in, user


@pytest.fixture
def block(engine: DeltaMemEngine) -> DeltaMemoryBlock:
    return DeltaMemoryBlock(engine=engine, session_id="alice")


def memory_with(block: DeltaMemoryBlock) -> Memory:
    return Memory.from_defaults(
        token_limit=60, token_flush_size=1, chat_history_token_ratio=0.9, memory_blocks=[block], tokenizer_fn=list
    )


async def test_what_leaves_the_queue_is_in_the_state(block: DeltaMemoryBlock, said: Said) -> None:
    """State and queue together hold everything once, in order."""
    memory = memory_with(block)
    script = [m for n in range(8) for m in (user(f"this is question {n}"), assistant(f"and answer {n}"))]
    for message in script:
        await memory.aput(message)
    queue = spoken(await memory.aget())
    assert 0 < len(said("alice")) < len(script)
    assert said("alice") + queue == spoken(script)
    assert block.engine_id
    assert block.engine.state("alice").tensor.norm() > 0


async def test_an_agent_reads_it(block: DeltaMemoryBlock, llm: DeltaMemLLM, engine: DeltaMemEngine, said: Said) -> None:
    """Through the memory of its run, bound to nothing; and the queue's messages are not written by that."""
    memory = memory_with(block)
    agent = FunctionAgent(llm=llm)
    for number in range(6):
        await agent.run(f"this is question {number}", memory=memory)
    assert said("alice") + spoken(await memory.aget()) == spoken(await memory.aget_all())
    assert len(engine.sessions()) == 1


def test_a_chat_engine_reads_it_when_its_llm_is_bound(block: DeltaMemoryBlock, llm: DeltaMemLLM, said: Said) -> None:
    memory = memory_with(block)
    chat = SimpleChatEngine.from_defaults(llm=llm.with_session("alice"), memory=memory)
    for number in range(6):
        chat.chat(f"this is question {number}")
    assert said("alice") + spoken(memory.get()) == spoken(memory.get_all())


async def test_what_failed_is_taken_in_with_the_next(llm: DeltaMemLLM) -> None:
    """Neither lost nor doubled, whether the caller tries it again or goes on."""
    store = FailingStore()
    with DeltaMemEngine(model_for(), byte_tokenizer(), store=store) as engine:
        block = DeltaMemoryBlock(engine=engine, engine_id="failing", session_id="alice")
        for text in ("one", "one", "two"):
            with pytest.raises(StoreError, match="the disk is full"):
                await block.aput([user(text)], from_short_term_memory=True)
        store.fails = False
        await block.aput([user("two")], from_short_term_memory=True)
        await block.aput([user("two")], from_short_term_memory=True)
        assert [text for _, text in spoken_in(engine, "alice")] == ["one", "two", "two"]


async def test_two_at_once(block: DeltaMemoryBlock, said: Said) -> None:
    await asyncio.gather(*(block.aput([user(str(number))]) for number in range(5)))
    assert sorted(text for _, text in said("alice")) == ["0", "1", "2", "3", "4"]
