"""Many callers, one model: turns of a session follow each other, and sessions don't touch."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager

import pytest

from deltamem_agents import (
    DeltaMemEngine,
    DeltaMemModel,
    GenerationError,
    MemoryState,
    Message,
    MessageError,
    StoreError,
    Turn,
)
from tests.engine.conftest import Start, model_for
from tests.engine.faults import FailingStore, Gate, before_forward, breakdown, slowed
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


# --- turns that decode together


def areply(engine: DeltaMemEngine, text: str, session: str | None, tokens: int = TOKENS) -> asyncio.Task[Turn]:
    """A turn in a task of its own. It is queued once the loop has gone round."""
    return asyncio.create_task(engine.agenerate([user(text)], session=session, max_new_tokens=tokens))


@contextmanager
def shapes(model: DeltaMemModel) -> Iterator[list[tuple[int, int]]]:
    """Rows and tokens of each forward. A forward of one token decodes: no prompt here is that short."""
    seen: list[tuple[int, int]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def as_alone(engine: DeltaMemEngine, alone: DeltaMemEngine, text: str, name: str, turn: Turn, tokens: int) -> None:
    expected = alone.generate([user(text)], session=name, max_new_tokens=tokens)
    assert (turn.reply.content, turn.usage) == (expected.reply.content, expected.usage)
    assert near(engine.state(name), alone.state(name))


def test_sessions_of_many_threads_decode_together(start: Start) -> None:
    engine, alone, gate, tokens = start(), start(store=":memory:"), Gate(), 12
    names = [f"session {number}" for number in range(20)]
    ready = threading.Barrier(len(names) + 1)

    def talk(name: str) -> Turn:
        ready.wait()
        return engine.generate([user(f"{name} {'hi ' * len(name)}")], session=name, max_new_tokens=tokens)

    with shapes(engine.model) as seen, before_forward(engine.model, 0, gate), ThreadPoolExecutor(20) as threads:
        turns = [threads.submit(talk, name) for name in names]
        ready.wait()
        assert gate.reached.wait(60)
        gate.opened.set()
        done = [turn.result(60) for turn in turns]
    decoding = [rows for rows, width in seen if width == 1]
    assert sum(decoding) == sum(t.usage.completion_tokens - (t.finish_reason == "length") for t in done)
    assert len(decoding) < len(names) * tokens / 4
    assert max(decoding) <= 16
    for name, turn in zip(names, done, strict=True):
        as_alone(engine, alone, f"{name} {'hi ' * len(name)}", name, turn, tokens)


async def test_no_more_decode_at_once_than_allowed_and_all_have_their_turn(start: Start) -> None:
    engine, gate = start(), Gate()
    with shapes(engine.model) as seen, before_forward(engine.model, 0, gate):
        turns = [areply(engine, "hi", None, 12) for _ in range(40)]
        await asyncio.to_thread(gate.reached.wait, 60)  # the loop has gone round: all are queued
        gate.opened.set()
        done = await asyncio.gather(*turns)
    assert len({turn.reply.content for turn in done}) == 1
    decoding = [rows for rows, width in seen if width == 1]
    assert sum(decoding) == 40 * 11
    assert max(decoding) == 16
    assert len(decoding) <= 5 * 11  # three full batches, and some that began or ended by themselves


async def test_turns_join_and_leave_at_any_time(start: Start) -> None:
    engine, alone = start(), start(store=":memory:")
    lengths = {"alice": 30, "bob": 3, "carol": 12, "dave": 7}
    gates = {"bob": (5, Gate()), "carol": (9, Gate()), "dave": (14, Gate())}  # before which forward they come
    with (
        shapes(engine.model) as seen,
        before_forward(engine.model, *gates["bob"]),
        before_forward(engine.model, *gates["carol"]),
        before_forward(engine.model, *gates["dave"]),
    ):
        turns = {"alice": areply(engine, "hi", "alice", lengths["alice"])}
        for name, (_, gate) in gates.items():
            await asyncio.to_thread(gate.reached.wait, 60)
            turns[name] = areply(engine, f"{name} is here", name, lengths[name])
            await asyncio.sleep(0)
            gate.opened.set()
        done = dict(zip(turns, await asyncio.gather(*turns.values()), strict=True))
    assert {2, 3} <= {rows for rows, width in seen if width == 1}
    for name, turn in done.items():
        text = "hi" if name == "alice" else f"{name} is here"
        as_alone(engine, alone, text, name, turn, lengths[name])


@pytest.mark.parametrize("streaming", [False, True])
async def test_one_that_leaves_does_not_disturb_the_others(streaming: bool, start: Start) -> None:
    engine, alone, gate = start(), start(store=":memory:"), Gate()

    async def listen() -> None:
        async with aclosing(engine.astream([user("a secret")], session="bob", max_new_tokens=50)) as items:  # type: ignore[type-var]
            async for _ in items:
                pass

    with before_forward(engine.model, 6, gate):
        first = areply(engine, "hi", "alice", 20)
        leaving = asyncio.create_task(listen()) if streaming else areply(engine, "a secret", "bob", 50)
        last = areply(engine, "the cat is here", "carol", 20)
        await asyncio.to_thread(gate.reached.wait, 60)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.opened.set()
        turns = await asyncio.gather(first, last)
    as_alone(engine, alone, "hi", "alice", turns[0], 20)
    as_alone(engine, alone, "the cat is here", "carol", turns[1], 20)
    assert engine.store.session("bob") is None
    as_alone(engine, alone, "so", "bob", await areply(engine, "so", "bob"), TOKENS)


async def test_turns_of_one_session_come_in_the_order_of_the_calls(start: Start) -> None:
    engine = start()
    texts = [f"number {number}" for number in range(6)]
    lengths = [9, 1, 5, 2, 7, 1]
    await asyncio.gather(
        *(areply(engine, text, "alice", most) for text, most in zip(texts, lengths, strict=True)),
        *(areply(engine, text, f"other {text}", 3) for text in texts),
    )
    line = engine.store.line(engine.store.session("alice").head or "")  # type: ignore[union-attr]
    assert [s.entries[0].digest for s in line] == [user(text).digest() for text in texts]


async def test_a_busy_session_keeps_only_its_own_waiting(start: Start) -> None:
    engine, gate = start(), Gate()
    with before_forward(engine.model, 12, gate):
        long, next_one = areply(engine, "hi", "alice", 40), areply(engine, "the cat", "alice", 2)
        others = [areply(engine, "hi", "bob", 2), areply(engine, "hi", None, 2)]
        await asyncio.gather(*others)
        await asyncio.to_thread(gate.reached.wait, 60)
        assert not long.done()
        assert not next_one.done()
        gate.opened.set()
        await asyncio.gather(long, next_one)
    assert [s.turns for s in engine.sessions(prefix="alice")] == [2]


def test_sessions_are_absorbed_and_forgotten_while_others_decode(start: Start) -> None:
    engine, alone, steps = start(), start(store=":memory:"), threading.Semaphore(0)
    reply(engine, "hi", "carol")
    with ThreadPoolExecutor(3) as threads, slowed(engine.model, steps.acquire):
        decoding = threads.submit(engine.generate, [user("hi")], session="alice", max_new_tokens=1000)
        absorbing = threads.submit(engine.absorb, [user("the cat")], session="bob")
        forgetting = threads.submit(engine.forget, "carol")
        most = 500
        while most and not (absorbing.done() and forgetting.done()):
            steps.release()
            time.sleep(0.001)
            most -= 1
        assert not decoding.done()
        assert most, "they waited for the reply"
        steps.release(2000)
        turn = decoding.result()
    as_alone(engine, alone, "hi", "alice", turn, 1000)
    alone.absorb([user("the cat")], session="bob")
    assert near(engine.state("bob"), alone.state("bob"))
    assert [s.name for s in engine.sessions()] == ["alice", "bob"]


async def test_what_goes_wrong_in_one_turn_is_its_own(start: Start) -> None:
    store = FailingStore()
    engine, alone = start(store=store), start(store=":memory:")
    too_long = asyncio.create_task(engine.agenerate([user("the cat " * 2000)], session="bob"))
    read = asyncio.create_task(engine.agenerate([user("hi")], session="carol", memory="read", max_new_tokens=9))
    unkept, stateless = areply(engine, "hi", "alice", 3), areply(engine, "the cat", None, 9)
    with pytest.raises(MessageError):
        await too_long
    with pytest.raises(StoreError, match="the disk is full"):
        await unkept
    expected = alone.generate([user("hi")], session="carol", memory="read", max_new_tokens=9)
    assert (await read).reply.content == expected.reply.content
    assert (await stateless).reply.content == alone.generate([user("the cat")], max_new_tokens=9).reply.content
    assert engine.sessions() == []


async def test_a_model_that_fails_fails_all_that_decode_and_goes_on_with_the_next(start: Start) -> None:
    engine, alone = start(), start(store=":memory:")
    for name in NAMES:
        reply(engine, "hi", name)
        reply(alone, "hi", name)
    heads = engine.sessions()
    with before_forward(engine.model, len(NAMES) + 2, breakdown):
        turns = [areply(engine, "a secret", name, 9) for name in NAMES]
        later = areply(engine, "so", "alice")
        for turn in turns:
            with pytest.raises(GenerationError, match="the device is gone"):
                await turn
        assert engine.sessions()[1:] == heads[1:]
        assert (await later).reply.content == reply(alone, "so", "alice").reply.content
    assert near(engine.state("alice"), alone.state("alice"))


async def test_closing_finishes_all_that_decode_and_all_that_wait(start: Start) -> None:
    engine, gate = start(), Gate()
    with before_forward(engine.model, 2, gate):
        turns = [areply(engine, f"{name} {n}", name) for n in range(3) for name in NAMES]
        await asyncio.to_thread(gate.reached.wait, 60)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        gate.opened.set()
        await closing
    assert all(turn.snapshot for turn in await asyncio.gather(*turns))
    assert [(s.name, s.turns) for s in start().sessions()] == [(name, 3) for name in NAMES]
