"""One suite on both homes of the engine's API: in this process, and behind a server."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import cast

import pytest
import torch

from deltamem_agents import (
    ConfigError,
    ContextOverflowError,
    DeltaMemEngine,
    DeltaMemError,
    Engine,
    FingerprintError,
    GenerationError,
    Message,
    MessageError,
    RemoteEngine,
    SessionError,
    SessionNotFoundError,
    StoreError,
    Tool,
    Turn,
    export_session,
)
from deltamem_agents.generation import ScoredText
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for
from tests.serve.conftest import KEYS, Running, Serve

CLOCK = Tool(
    name="clock",
    description="Tells the time.",
    parameters={"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]},
)


def user(text: str, id: str | None = None) -> Message:
    return Message(role="user", content=text, id=id)


@pytest.fixture
def running(serve: Serve) -> Running:
    return serve(keys=KEYS)


@pytest.fixture(params=["here", "behind a server"])
def engine(request: pytest.FixtureRequest, running: Running) -> Iterator[Engine]:
    """The same engine and store either way; the key's namespace is in the way of the remote one only."""
    if request.param == "here":
        yield running.engine
    else:
        with DeltaMemEngine.connect(running.url, api_key="key-of-alice") as remote:
            yield remote


@pytest.fixture
def reference() -> Iterator[DeltaMemEngine]:
    """What an engine does that nothing else has touched."""
    with DeltaMemEngine(model_for(), byte_tokenizer(), store=":memory:") as engine:
        yield engine


def test_it_keeps_the_interface(engine: Engine, running: Running) -> None:
    assert isinstance(engine, Engine)
    for name in ("model_name", "context", "recent_messages", "fingerprint"):
        assert getattr(engine, name) == getattr(running.engine, name)


async def test_every_way_to_talk_gives_the_same_turns(engine: Engine, reference: DeltaMemEngine) -> None:
    said = [user(text) for text in ("one", "two", "three", "four")]
    expected = [reference.generate([message], session="s", thread="t", max_new_tokens=5) for message in said]
    session = engine.session("s", thread="t")
    turns = [session.generate(said[:1], max_new_tokens=5), await session.agenerate(said[1:2], max_new_tokens=5)]
    streamed = list(session.stream(said[2:3], max_new_tokens=5))
    streamed_too = [item async for item in session.astream(said[3:], max_new_tokens=5)]
    turns += [item for item in (*streamed, *streamed_too) if isinstance(item, Turn)]
    assert [turn.reply.content for turn in turns] == [turn.reply.content for turn in expected]
    assert [turn.usage for turn in turns] == [turn.usage for turn in expected]
    assert [turn.finish_reason for turn in turns] == [turn.finish_reason for turn in expected]
    assert {turn.session for turn in turns} == {"s"}
    assert "".join(item for item in streamed if isinstance(item, str)) == turns[2].reply.content
    log = session.log()
    assert [snapshot.id for snapshot in log] == [turn.snapshot for turn in turns]
    assert {(snapshot.session, snapshot.thread) for snapshot in log} == {("s", "t")}
    assert torch.allclose(session.state.tensor, reference.state("s").tensor, atol=1e-5)
    assert (session.info.name, session.info.turns, session.info.messages) == ("s", 4, 8)


def test_replies_carry_handles_that_lead_back(engine: Engine) -> None:
    first = engine.generate([user("one", id="m1")], session="s", max_new_tokens=3)
    engine.generate([user("one", id="m1"), first.reply, user("two")], session="s", max_new_tokens=3)
    again = engine.generate([user("one", id="m1"), first.reply, user("deux")], session="s", max_new_tokens=3)
    line = engine.store.line(again.snapshot or "")
    assert [turn.id for turn in line] == [first.snapshot, again.snapshot]
    assert len(engine.log("s")) == 3
    foreign = first.reply.model_copy(update={"snapshot": "nowhere", "id": "nowhere"})
    with pytest.raises(SessionError, match="on none of the lines of session 's'"):
        engine.generate([foreign, user("three")], session="s")


def test_tools_formats_logprobs_and_modes(engine: Engine) -> None:
    called = engine.generate([user("time?")], tools=[CLOCK], tool_choice="clock", max_new_tokens=200)
    assert called.reply.tool_calls[0].name == "clock"
    assert called.snapshot is None
    held = engine.generate([user("x")], response_format={"type": "regex", "regex": "[ab]{3}"}, logprobs=2)
    assert set(held.reply.content) <= set("ab")
    assert held.logprobs is not None
    assert len(held.logprobs[0].top) == 2
    *texts, turn = engine.stream([user("x")], logprobs=1, max_new_tokens=4)
    assert isinstance(turn, Turn)
    assert [len(text.logprobs[0].top) for text in texts if isinstance(text, ScoredText)] == [1] * len(texts)
    assert tuple(one for text in texts if isinstance(text, ScoredText) for one in text.logprobs) == turn.logprobs
    engine.generate([user("x")], session="s", memory="read", max_new_tokens=2)
    assert engine.sessions() == []


def test_a_batch_keeps_its_order(engine: Engine, reference: DeltaMemEngine) -> None:
    conversations = [[user(text)] for text in ("one", "uno", "two", "eins")]
    sessions = ["a", "b", "a", None]
    turns = engine.batch(conversations, sessions=sessions, max_new_tokens=4)
    expected = reference.batch(conversations, sessions=sessions, max_new_tokens=4)
    assert [turn.reply.content for turn in turns] == [turn.reply.content for turn in expected]
    assert engine.info("a").turns == 2
    with pytest.raises(SessionError, match="1 conversations for 2 sessions"):
        engine.batch(conversations[:1], sessions=["a", "b"])


async def test_absorbing_with_keys(engine: Engine) -> None:
    first = engine.absorb([user("one")], session="s", thread="t", key="k")
    assert await engine.aabsorb([user("one")], session="s", thread="t", key="k") == first
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "clock", "arguments": {}, "id": "c"}]}
    engine.absorb([call, {"role": "tool", "content": "noon", "tool_call_id": "c"}], session="s")
    assert engine.store.absorbed(engine.info("s").head or "", "k") == first
    assert [entry.role for turn in engine.log("s") for entry in turn.entries] == ["user", "assistant", "tool"]


def test_tokens_are_counted(engine: Engine, running: Running) -> None:
    assert engine.count_tokens([user("hi")], tools=[CLOCK]) == running.engine.count_tokens([user("hi")], tools=[CLOCK])
    assert engine.token_ids("the user") == running.engine.token_ids("the user")


def test_sessions_are_listed_forked_rolled_back_and_forgotten(engine: Engine) -> None:
    first, second = (engine.absorb([user(text)], session="s/1 ü", thread="t") for text in ("one", "two"))
    session = engine.session("s/1 ü")
    assert session.fork("fork", at=first).info.head == first
    assert [info.name for info in engine.sessions()] == ["fork", "s/1 ü"]
    assert [info.name for info in engine.sessions(prefix="s/")] == ["s/1 ü"]
    assert session.rollback(turns=1) == first
    assert session.rollback(second) == second
    assert engine.rollback("fork", turns=1) is None
    with pytest.raises(SessionError, match="exists already"):
        session.fork("fork")
    with pytest.raises(SessionError, match="cannot go back 9 turns: session 's/1 ü' has 2"):
        session.rollback(turns=9)
    session.forget()
    assert [info.name for info in engine.sessions()] == ["fork"]


def test_a_message_is_forgotten_and_a_memory_asked(engine: Engine) -> None:
    ids = [engine.absorb([user(text)], session="s") for text in ("My dog is called Rex.", "5551234567", "I am Ann.")]
    session = engine.session("s")
    head = session.forget_message(f"{ids[1]}/0", purge=True)
    assert session.info.head == head
    assert "5551234567" not in str(session.log())
    asked = session.remembered(["What is my dog called?"])
    alone = engine.generate(
        [user("What is my dog called?")], session="s", memory="read", recent_messages=0, max_new_tokens=48
    )
    assert asked[0].answer == alone.reply.content
    assert len(session.remembered()) > 3


def test_a_memory_is_inspected(engine: Engine, running: Running) -> None:
    engine.absorb([user("My dog is called Rex.")], session="s")
    view = engine.inspect("s")
    assert (view.session, view.turns) == ("s", 1)
    assert view.last is not None
    assert view.last.messages[0].writes
    assert view.replaced == {1: 1.0}
    assert engine.inspect("s", writes=False).last is None


def test_sessions_move_between_stores(engine: Engine, tmp_path: Path) -> None:
    engine.absorb([user("one")], session="s")
    engine.absorb([user("two")], session="s")
    session = engine.session("s")
    assert session.export(tmp_path / "file") == 2
    assert export_session(engine.store, "s", tmp_path / "other") == 2
    session.forget()
    assert engine.import_session(tmp_path / "file").name == "s"
    assert engine.import_session(tmp_path / "other", name="t").info.messages == 2
    with pytest.raises(SessionError, match="session 's' exists already"):
        engine.import_session(tmp_path / "file")
    (tmp_path / "bad").write_bytes((tmp_path / "file").read_bytes()[:-100])
    with pytest.raises(StoreError, match="is no sound export"):
        engine.import_session(tmp_path / "bad", name="u")
    with pytest.raises(StoreError):
        engine.import_session(tmp_path / "none")
    with pytest.raises(StoreError):
        session.export(tmp_path / "no folder" / "file")


def test_the_store_can_be_read(engine: Engine) -> None:
    first = engine.absorb([user("one", id="m1")], session="s", thread="t")
    second = engine.absorb([user("two", id="m2")], session="s", thread="u")
    store = engine.store
    assert store.session("none") is None
    assert [turn.id for turn in store.line(second)] == [first, second]
    assert [turn.id for turn in store.line(second, since=1)] == [second]
    assert [turn.id for turn in store.thread(second, "t", last=5)] == [first]
    assert store.thread(second, "t", last=0) == []
    assert {id: turn.id for id, turn in store.find("s", {"m1", "m3"}).items()} == {"m1": first}
    assert store.find("none", {"m1"}) == {}
    assert store.through(first) == ["s"]
    snapshot = store.snapshot(second)
    assert snapshot.state
    assert (snapshot.session, snapshot.parent, snapshot.entries[0].message_id) == ("s", first, "m2")
    for look in (store.snapshot, store.line):
        with pytest.raises(StoreError, match="'nowhere' is not in this store"):
            look("nowhere")


BAD: list[tuple[type[DeltaMemError], Callable[[Engine], object]]] = [
    (MessageError, lambda e: e.generate([])),
    (MessageError, lambda e: e.generate([{"role": "robot", "content": "x"}])),
    (ContextOverflowError, lambda e: e.generate([user("a" * 9000)])),
    (SessionError, lambda e: e.generate([user("x")], session=" x")),
    (SessionError, lambda e: e.generate([user("x")], session="s", thread="a\nb")),
    (SessionError, lambda e: e.absorb([user("x")], session="s", key="")),
    (ConfigError, lambda e: e.generate([user("x")], memory=cast("None", "write"))),
    (ConfigError, lambda e: e.generate([user("x")], recent_messages=-1)),
    (ConfigError, lambda e: e.generate([user("x")], tools=[{"name": "a b"}])),
    (ConfigError, lambda e: e.generate([user("x")], tool_choice="clock")),
    (GenerationError, lambda e: e.generate([user("x")], temperature=-1)),
    (GenerationError, lambda e: e.generate([user("x")], top_q=1)),  # type: ignore[call-arg]
    (GenerationError, lambda e: e.stream([user("x")], stop=[""])),
    (SessionNotFoundError, lambda e: e.info("none")),
    (SessionNotFoundError, lambda e: e.log("none")),
    (SessionNotFoundError, lambda e: e.state("none")),
    (SessionNotFoundError, lambda e: e.forget("none")),
    (SessionNotFoundError, lambda e: e.fork("none", "other")),
    (SessionNotFoundError, lambda e: e.rollback("none", turns=1)),
    (SessionNotFoundError, lambda e: e.inspect("none")),
    (SessionNotFoundError, lambda e: e.remembered("none")),
    (SessionNotFoundError, lambda e: e.rebuild("none")),
    (SessionNotFoundError, lambda e: e.forget_message("none", "m")),
    (SessionNotFoundError, lambda e: e.export_session("none", "file")),
]


@pytest.mark.parametrize(("kind", "call"), BAD)
def test_mistakes_raise_the_same_errors(
    running: Running,
    kind: type[DeltaMemError],
    call: Callable[[Engine], object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    remote = DeltaMemEngine.connect(running.url, api_key="key-of-alice")
    with pytest.raises(DeltaMemError) as here:
        call(running.engine)
    with pytest.raises(DeltaMemError) as there:
        call(remote)
    assert type(here.value) is kind
    assert type(there.value) is kind
    assert str(there.value) == str(here.value)
    remote.close()


def test_another_adapters_session_is_refused(engine: Engine, running: Running, tmp_path: Path) -> None:
    with DeltaMemEngine(model_for(("user",)), byte_tokenizer(), store=tmp_path / "store.db") as other:
        for name in ("s", "alice:s"):
            other.absorb([user("one")], session=name)
    for look in (lambda: engine.state("s"), lambda: engine.generate([user("x")], session="s")):
        with pytest.raises(FingerprintError):
            look()


async def test_leaving_early_leaves_the_session_as_it_was(engine: Engine, running: Running) -> None:
    items = engine.stream([user("all")], session="s", max_new_tokens=1500)
    with closing(cast("Iterator[str | Turn]", items)) as text:  # type: ignore[type-var]
        next(text)
    async with aclosing(engine.astream([user("all")], session="s", max_new_tokens=1500)) as later:  # type: ignore[type-var]
        await anext(later)
    task = asyncio.create_task(engine.agenerate([user("all")], session="s", max_new_tokens=1500))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while running.engine.figures.running or running.service.gate.under_way:
        await asyncio.sleep(0.01)
    assert engine.sessions() == []
    assert engine.generate([user("one")], session="s", max_new_tokens=2).snapshot == engine.info("s").head


def test_threads_and_event_loops_may_share_it(engine: Engine) -> None:
    def talk(name: str) -> None:
        for text in ("one", "two"):
            engine.generate([user(text)], session=name, max_new_tokens=3)
            asyncio.run(engine.aabsorb([user("noted")], session=name))

    threads = [threading.Thread(target=talk, args=(f"s{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [(info.turns, info.messages) for info in engine.sessions()] == [(4, 6)] * 6


def test_closing_closes(running: Running) -> None:
    remote = DeltaMemEngine.connect(running.url, api_key="key-of-alice")
    remote.close()
    with pytest.raises(StoreError, match="closed"):
        remote.store.session("s")
    with pytest.raises(StoreError, match="closed"):
        remote.generate([user("x")])


def test_servers_that_cannot_be_used_say_why(running: Running) -> None:
    with pytest.raises(StoreError, match="cannot be reached"):
        RemoteEngine("http://127.0.0.1:9", timeout=2)
    with pytest.raises(ConfigError, match="no known API key"):
        RemoteEngine(running.url, api_key="wrong-key")
    with pytest.raises(ConfigError):
        RemoteEngine("ftp://[")
    remote = RemoteEngine(running.url + "/v1/", api_key="key-of-bob-1")
    for change in (lambda: remote.store.prune("s", keep=1), lambda: remote.store.move_head("s", None, expected=None)):
        with pytest.raises(StoreError, match="use the engine's methods"):
            change()
    remote.close()


def test_a_busy_server_is_asked_again(serve: Serve) -> None:
    server = serve(max_batch=1, max_queue=0)
    with DeltaMemEngine.connect(server.url) as one, DeltaMemEngine.connect(server.url) as two:
        items = one.stream([user("all")], max_new_tokens=300)
        next(items)
        answered: list[Turn] = []
        waits = threading.Thread(target=lambda: answered.append(two.generate([user("x")], max_new_tokens=2)))
        waits.start()
        time.sleep(0.2)
        assert not answered
        for _ in items:
            pass
        waits.join(60)
    assert answered[0].usage.completion_tokens == 2
