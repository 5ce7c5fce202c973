"""A turn is complete, or the session is as it was."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest

from deltamem_agents import (
    ConflictError,
    DeltaMemEngine,
    GenerationError,
    MemoryState,
    Message,
    SessionNotFoundError,
    StoreError,
    Turn,
)
from tests.engine.conftest import Start, model_for
from tests.engine.faults import FailingStore, Gate, OvertakenStore, before_forward, breakdown, slowed
from tests.engine.ledger import WrittenTokens
from tests.engine.reference import NaiveSession, message_ids

USER, ALL = ("user",), ("user", "assistant", "tool")
TOKENS = 5
Leave = Callable[[DeltaMemEngine], None]


def user(text: str) -> Message:
    return Message(role="user", content=text)


def reply(engine: DeltaMemEngine, text: str, session: str = "alice") -> Turn:
    return engine.generate([user(text)], session=session, max_new_tokens=TOKENS)


def near(state: MemoryState, expected: MemoryState) -> bool:
    return bool((state.tensor - expected.tensor).norm() <= 1e-3 * expected.tensor.norm())


def leave_at_once(engine: DeltaMemEngine) -> None:
    stream = engine.stream([user("a secret")], session="alice", max_new_tokens=200)
    assert isinstance(next(stream), str)
    stream.close()  # type: ignore[attr-defined]


def leave_by_an_exception(engine: DeltaMemEngine) -> None:
    def consume() -> None:
        for _ in engine.stream([user("a secret")], session="alice", max_new_tokens=200):
            raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        consume()


def never_begin(engine: DeltaMemEngine) -> None:
    engine.stream([user("a secret")], session="alice")


def leave_asynchronously(engine: DeltaMemEngine) -> None:
    async def main() -> None:
        async with aclosing(engine.astream([user("a secret")], session="alice", max_new_tokens=200)) as stream:  # type: ignore[type-var]
            async for _ in stream:
                break

    asyncio.run(main())


def cancel_the_task(engine: DeltaMemEngine) -> None:
    gate = Gate()

    async def main() -> None:
        with before_forward(engine.model, 2, gate):
            task = asyncio.create_task(engine.agenerate([user("a secret")], session="alice", max_new_tokens=200))
            await asyncio.to_thread(gate.reached.wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.opened.set()

    asyncio.run(main())


def cancel_while_queued(engine: DeltaMemEngine) -> None:
    gate = Gate()

    async def main() -> None:
        with before_forward(engine.model, 0, gate):
            running = asyncio.create_task(engine.agenerate([user("hi")], max_new_tokens=1))
            waiting = asyncio.create_task(engine.agenerate([user("a secret")], session="alice"))
            await asyncio.to_thread(gate.reached.wait, 60)
            waiting.cancel()
            gate.opened.set()
            await running

    asyncio.run(main())


def break_while_prefilling(engine: DeltaMemEngine) -> None:
    with before_forward(engine.model, 0, breakdown), pytest.raises(GenerationError, match="the device is gone"):
        reply(engine, "a secret")


def break_while_decoding(engine: DeltaMemEngine) -> None:
    with before_forward(engine.model, 3, breakdown), pytest.raises(GenerationError, match="RuntimeError"):
        reply(engine, "a secret")


def break_while_streaming(engine: DeltaMemEngine) -> None:
    with before_forward(engine.model, 3, breakdown), pytest.raises(GenerationError, match="session is as it was"):
        list(engine.stream([user("a secret")], session="alice", max_new_tokens=TOKENS))


def break_while_absorbing(engine: DeltaMemEngine) -> None:
    with before_forward(engine.model, 0, breakdown), pytest.raises(GenerationError):
        engine.absorb([user("a secret")], session="alice")


def break_in_a_batch(engine: DeltaMemEngine) -> None:
    with before_forward(engine.model, 3, breakdown), pytest.raises(GenerationError):
        engine.batch([[user("a secret")], [user("hi")]], sessions=["alice", "bob"], max_new_tokens=TOKENS)
    assert engine.store.session("bob") is None


LEAVES = [
    leave_at_once,
    leave_by_an_exception,
    never_begin,
    leave_asynchronously,
    cancel_the_task,
    cancel_while_queued,
    break_while_prefilling,
    break_while_decoding,
    break_while_streaming,
    break_while_absorbing,
    break_in_a_batch,
]


@pytest.mark.parametrize("roles", [USER, ALL])
@pytest.mark.parametrize("leave", LEAVES)
def test_a_turn_that_is_not_complete_leaves_the_session_as_it_was(
    leave: Leave, roles: tuple[str, ...], start: Start
) -> None:
    engine, untouched = start(model_for(roles)), start(model_for(roles), store=":memory:")
    leave(engine)
    assert engine.sessions() == []
    for number in range(2):
        turn, expected = reply(engine, f"{number} hi"), reply(untouched, f"{number} hi")
        assert turn.reply.content == expected.reply.content
        head = engine.sessions()
        leave(engine)
        assert engine.sessions() == head
        assert near(engine.state("alice"), untouched.state("alice"))


def test_a_reader_who_has_all_text_but_not_the_turn_keeps_nothing(start: Start) -> None:
    engine = start()
    whole = reply(engine, "hi", "bob").reply.content
    stream, text = engine.stream([user("hi")], session="alice", max_new_tokens=TOKENS), ""
    while text != whole:
        text += str(next(stream))
    stream.close()  # type: ignore[attr-defined]
    assert engine.store.session("alice") is None


async def test_a_task_that_is_cancelled_while_its_reply_is_written_keeps_nothing(start: Start) -> None:
    engine, gate = start(model_for(ALL)), Gate()
    with before_forward(engine.model, TOKENS, gate):  # after the prompt and all tokens of the reply but the last
        task = asyncio.create_task(engine.agenerate([user("hi")], session="alice", max_new_tokens=TOKENS))
        await asyncio.to_thread(gate.reached.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.opened.set()
        await engine.agenerate([user("hi")], max_new_tokens=1)  # its work is behind us now
    assert engine.sessions() == []


async def test_turns_between_a_reply_and_its_commit_come_first(start: Start) -> None:
    """A reader who is slow to ask for the turn loses the race, and is replayed."""
    model = model_for()
    engine, naive = start(model), NaiveSession(model, 8)
    whole = reply(engine, "hi", "bob").reply.content
    stream, text = engine.stream([user("hi")], session="alice", max_new_tokens=TOKENS), ""
    while text != whole:
        text += str(next(stream))
    other = reply(engine, "the cat")
    turn = next(stream)
    assert isinstance(turn, Turn)
    naive.turn([user("the cat")], most=TOKENS, reply=other.reply.content)
    naive.turn([user("hi")], most=TOKENS, reply=whole)
    assert near(engine.state("alice"), naive.state)
    assert reply(engine, "so").reply.content == naive.turn([user("so")], most=TOKENS)


def test_an_error_of_the_store_at_the_commit_loses_only_that_turn(start: Start) -> None:
    store = FailingStore()
    engine, untouched = start(store=store), start(store=":memory:")
    for text in ("hi", "the cat"):
        store.fails = True
        with pytest.raises(StoreError, match="the disk is full"):
            reply(engine, "a secret")
        with pytest.raises(StoreError, match="the disk is full"):
            engine.absorb([user("a secret")], session="alice")
        store.fails = False
        assert reply(engine, text).reply.content == reply(untouched, text).reply.content
    assert near(engine.state("alice"), untouched.state("alice"))


def test_a_race_that_is_never_won_ends(start: Start) -> None:
    store = FailingStore(ConflictError)
    engine = start(store=store)
    with pytest.raises(ConflictError):
        reply(engine, "hi")
    assert 2 <= store.tries <= 50


@pytest.mark.parametrize("roles", [USER, ALL])
@pytest.mark.parametrize("granularity", ["token", "message_mean"])
@pytest.mark.parametrize("losses", [1, 3])
def test_the_loser_of_a_race_is_replayed_on_the_new_head(
    roles: tuple[str, ...], granularity: str, losses: int, start: Start, tmp_path: Path
) -> None:
    model = model_for(roles, granularity)
    store = OvertakenStore(tmp_path / "store.db")
    loser, winner = start(model, store=store, recent_messages=4), start(model, recent_messages=4)
    naive = NaiveSession(model, 4)
    with WrittenTokens(model) as written:
        reply(loser, "hi")
        store.overtaking = [partial(reply, winner, f"winner {n}") for n in range(losses)]
        turn = reply(loser, "loser")
        lost = written.behind(loser.state("alice"))
    assert store.conflicts == losses
    naive.turn([user("hi")], most=TOKENS)
    for number in range(losses):
        naive.turn([user(f"winner {number}")], most=TOKENS)
    naive.turn([user("loser")], most=TOKENS, reply=turn.reply.content)
    assert near(loser.state("alice"), naive.state)
    assert lost == [i for m in naive.messages if m.role in roles for i in message_ids(m)]
    line = loser.store.line(turn.snapshot or "")
    assert [e.digest for s in line for e in s.entries] == [m.digest() for m in naive.messages]
    assert reply(loser, "go on").reply.content == naive.turn([user("go on")], most=TOKENS)


def test_the_loser_of_a_race_to_absorb_is_replayed_too(start: Start, tmp_path: Path) -> None:
    store = OvertakenStore(tmp_path / "store.db")
    loser, winner = start(store=store), start()
    store.overtaking = [lambda: reply(winner, "winner")]
    loser.absorb([user("hi"), Message(role="assistant", content="ok")], session="alice")
    line = loser.store.line(loser.sessions()[0].head or "")
    assert [(s.kind, len(s.entries)) for s in line] == [("turn", 2), ("absorb", 2)]


def test_a_long_reply_that_lost_a_race_needs_no_second_room_in_the_context(start: Start, tmp_path: Path) -> None:
    model, store = model_for(context=256), OvertakenStore(tmp_path / "store.db")
    loser, winner = start(model, store=store), start(model)
    store.overtaking = [lambda: reply(winner, "winner")]
    turn = loser.generate([user("hi")], session="alice", max_new_tokens=180)
    assert turn.usage.completion_tokens > 100
    assert loser.sessions()[0].messages == 4


def test_a_session_forgotten_in_the_middle_of_a_turn_stays_forgotten(start: Start, tmp_path: Path) -> None:
    store = OvertakenStore(tmp_path / "store.db")
    engine, other = start(store=store), start()
    reply(engine, "hi")
    store.overtaking = [lambda: other.forget("alice")]
    with pytest.raises(SessionNotFoundError, match="was forgotten while this turn was under way"):
        reply(engine, "the cat")
    assert engine.sessions() == []
    assert reply(engine, "the cat").snapshot is not None  # said again, it begins anew
    assert engine.sessions()[0].messages == 2


def test_a_closed_engine_says_so(start: Start) -> None:
    engine = start()
    reply(engine, "hi")
    engine.close()
    engine.close()
    with pytest.raises(GenerationError, match="make a new one"):
        reply(engine, "hi")
    with pytest.raises(GenerationError, match="closed"):
        list(engine.stream([user("hi")], session="alice"))
    with pytest.raises(GenerationError, match="closed"):
        asyncio.run(engine.agenerate([user("hi")]))
    with pytest.raises(StoreError, match="closed"):
        engine.sessions()


def test_closing_in_the_middle_of_a_stream_keeps_nothing_of_it(start: Start) -> None:
    engine = start()
    stream = engine.stream([user("hi")], session="alice", max_new_tokens=TOKENS)
    next(stream)
    engine.close()
    with pytest.raises(GenerationError, match="closed"):
        list(stream)
    assert start().sessions() == []


def test_closing_finishes_what_is_queued(start: Start) -> None:
    engine, gate = start(), Gate()
    with before_forward(engine.model, 0, gate), ThreadPoolExecutor(2) as threads:
        running = threads.submit(reply, engine, "hi")
        assert gate.reached.wait(60)
        closing = threads.submit(engine.close)
        gate.opened.set()
        closing.result()
        assert start().sessions()[0].head == running.result().snapshot


def test_what_is_forgotten_is_gone_from_the_cache_too(start: Start) -> None:
    engine = start()
    first = reply(engine, "hi")
    reply(engine, "the cat")
    engine.forget("alice")
    again = reply(engine, "hi")
    assert again.reply.content == first.reply.content
    assert again.usage.cached_tokens == 0
    assert engine.sessions()[0].turns == 1


@pytest.mark.parametrize("cache_bytes", [0, 20_000])
def test_a_small_cache_budget_changes_nothing_but_speed(cache_bytes: int, start: Start) -> None:
    small, large = start(cache_bytes=cache_bytes), start(store=":memory:")
    for number in range(3):
        for session in ("alice", "bob"):
            text = f"{number} {session}"
            assert reply(small, text, session).reply.content == reply(large, text, session).reply.content


async def test_the_event_loop_is_never_blocked(start: Start) -> None:
    engine, ticks = start(), 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    with slowed(engine.model, lambda: time.sleep(0.05)):
        ticking = asyncio.create_task(tick())
        pieces = [item async for item in engine.astream([user("hi")], session="alice", max_new_tokens=TOKENS)]
        after_stream = ticks
        turn = await engine.agenerate([user("the cat")], session="alice", max_new_tokens=TOKENS)
        ticking.cancel()
    assert isinstance(pieces[-1], Turn)
    assert "".join(str(p) for p in pieces[:-1]) == pieces[-1].reply.content
    assert after_stream >= TOKENS
    assert ticks - after_stream >= TOKENS
    assert turn.snapshot == engine.sessions()[0].head
