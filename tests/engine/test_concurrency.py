"""Many callers, one model: turns of a session follow each other, and sessions don't touch."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from deltamem_agents import DeltaMemEngine, MemoryState, Message, Turn
from tests.engine.conftest import Start, model_for
from tests.engine.ledger import WrittenTokens
from tests.engine.reference import message_ids

TOKENS = 4
NAMES = ["alice", "bob", "carol", "dave"]


def user(text: str) -> Message:
    return Message(role="user", content=text)


def reply(engine: DeltaMemEngine, text: str, session: str) -> Turn:
    return engine.generate([user(text)], session=session, max_new_tokens=TOKENS)


def near(state: MemoryState, expected: MemoryState) -> bool:
    return bool((state.tensor - expected.tensor).norm() <= 1e-3 * expected.tensor.norm())


def test_turns_of_one_session_from_many_threads_follow_each_other(start: Start) -> None:
    model = model_for()
    engine = start(model)
    with WrittenTokens(model) as written, ThreadPoolExecutor(8) as threads:
        texts = [f"thread {number}" for number in range(12)]
        turns = list(threads.map(lambda text: reply(engine, text, "alice"), texts))
        line = engine.store.line(engine.sessions()[0].head or "")
        assert {t.snapshot for t in turns} == {s.id for s in line}
        assert [s.turn for s in line] == list(range(1, 13))
        said = [Message.model_validate_json(e.text) for s in line for e in s.entries if e.text]
        asked = [e.digest for s in line for e in s.entries[:1]]
        assert sorted(asked) == sorted(user(text).digest() for text in texts)
        tail = [i for m in said if m.role == "user" for i in message_ids(m)]
        assert written.behind(engine.state("alice"))[-len(tail) :] == tail


@pytest.mark.parametrize("processes", [1, 2])
def test_sessions_from_many_threads_do_not_touch(processes: int, start: Start) -> None:
    alone = start(store=":memory:")
    engines = [start() for _ in range(processes)]

    def talk(number: int) -> list[str]:
        name = NAMES[number]
        return [reply(engines[number % processes], f"{name} {n}", name).reply.content for n in range(4)]

    with ThreadPoolExecutor(len(NAMES)) as threads:
        told = list(threads.map(talk, range(len(NAMES))))
    for name, replies in zip(NAMES, told, strict=True):
        assert replies == [reply(alone, f"{name} {n}", name).reply.content for n in range(4)]
        assert near(engines[0].state(name), alone.state(name))


def test_engines_on_one_store_take_turns_in_one_session(start: Start) -> None:
    """Two processes: whoever loses a race replays, so nothing is lost and nothing is there twice."""
    engines = [start(), start()]

    def talk(number: int) -> list[str | None]:
        return [reply(engines[number], f"{number} {n}", "alice").snapshot for n in range(6)]

    with ThreadPoolExecutor(2) as threads:
        snapshots = {id for ids in threads.map(talk, range(2)) for id in ids}
    line = engines[0].store.line(engines[0].sessions()[0].head or "")
    assert {s.id for s in line} == snapshots
    assert sorted(e.digest for s in line for e in s.entries[:1]) == sorted(
        user(f"{number} {n}").digest() for number in range(2) for n in range(6)
    )


async def test_many_tasks_stream_at_once(start: Start) -> None:
    engine, alone = start(), start(store=":memory:")

    async def talk(name: str) -> list[str]:
        texts = []
        for n in range(2):
            items = [i async for i in engine.astream([user(f"{name} {n}")], session=name, max_new_tokens=TOKENS)]
            texts.append("".join(i for i in items if isinstance(i, str)))
        return texts

    told = await asyncio.gather(*(talk(name) for name in NAMES))
    assert told == [[reply(alone, f"{name} {n}", name).reply.content for n in range(2)] for name in NAMES]
