"""Regenerating, editing, time travel, and what may not be undone."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from deltamem_agents import (
    DeltaMemEngine,
    MemoryState,
    Message,
    MessageLike,
    SessionError,
    SessionNotFoundError,
    Turn,
)
from tests.engine.conftest import Start, model_for
from tests.engine.ledger import WrittenTokens
from tests.engine.reference import NaiveSession, message_ids
from tests.engine.visible import STYLES, Client

ALL = ("user", "assistant", "tool")


def user(text: str, id: str | None = None) -> Message:
    return Message(role="user", content=text, id=id)


def ask(engine: DeltaMemEngine, messages: Sequence[MessageLike], **options: object) -> Turn:
    return engine.generate(messages, **{"session": "alice", "max_new_tokens": 4, **options})  # type: ignore[arg-type]


def near(state: MemoryState, expected: MemoryState) -> bool:
    return bool((state.tensor - expected.tensor).norm() <= 1e-3 * expected.tensor.norm())


def told(engine: DeltaMemEngine, *turns: tuple[Sequence[Message], Message]) -> MemoryState:
    """The state of a fresh session that is told these turns."""
    naive = NaiveSession(engine.model, engine.recent_messages)
    for new, reply in turns:
        naive.turn(new, reply=reply.content)
    return naive.state


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("recent", [0, 2, 8])
def test_a_regenerated_reply_takes_the_place_of_the_first(recent: int, cold: bool, start: Start) -> None:
    engine = start(model_for(ALL), recent_messages=recent)
    one, two = user("hi", "1"), user("the cat", "2")
    first = ask(engine, [one])
    second = ask(engine, [one, first.reply, two])
    if cold:
        engine = start(model_for(ALL), recent_messages=recent)
    again = ask(engine, [one, first.reply, two], seed=1, temperature=2.0)
    assert near(engine.state("alice"), told(engine, ([one], first.reply), ([two], again.reply)))
    log = engine.session("alice").log()
    assert [turn.id for turn in log] == [first.snapshot, second.snapshot, again.snapshot]
    assert [turn.parent for turn in log] == [None, first.snapshot, first.snapshot]


def test_a_reply_of_a_line_that_was_left_leads_back_to_it(start: Start) -> None:
    engine = start(model_for(ALL), recent_messages=2)
    one, two, three = user("hi", "1"), user("the cat", "2"), user("so", "3")
    first = ask(engine, [one])
    left = ask(engine, [one, first.reply, two])
    ask(engine, [one, first.reply, two], seed=1, temperature=2.0)
    onward = ask(engine, [one, first.reply, two, left.reply, three])
    expected = told(engine, ([one], first.reply), ([two], left.reply), ([three], onward.reply))
    assert near(engine.state("alice"), expected)


def test_the_first_message_can_be_edited_under_its_own_id(start: Start) -> None:
    engine = start(model_for(ALL))
    first = ask(engine, [user("hi", "1")])
    ask(engine, [user("hi", "1"), first.reply, user("ok", "2")])
    edited = ask(engine, [user("hello", "1")])
    assert near(engine.state("alice"), told(engine, ([user("hello")], edited.reply)))


def test_an_edited_reply_is_what_was_said(start: Start) -> None:
    """As LangGraph's `update_state` does it: the same id, another text."""
    engine = start(model_for(ALL))
    one, two = user("hi", "1"), user("ok", "2")
    first = ask(engine, [one])
    changed = first.reply.model_copy(update={"content": "Something else."})
    second = ask(engine, [one, changed, two])
    naive = NaiveSession(engine.model, engine.recent_messages)
    naive.turn([one, changed, two], reply=second.reply.content)
    assert near(engine.state("alice"), naive.state)


def test_an_edited_reply_that_had_to_be_appended_is_known_where_it_stands(start: Start) -> None:
    engine = start(model_for(ALL))
    one = user("hi", "1")
    first = ask(engine, [one], thread="a")
    ask(engine, [user("a secret", "b1")], thread="b")
    changed = first.reply.model_copy(update={"content": "Something else.", "id": "the framework's"})
    ask(engine, [one, changed, user("ok", "2")], thread="a")  # appended: thread b wrote since
    ask(engine, [one, changed, user("so", "3")], thread="a")  # an edit of that turn
    line = engine.store.line(engine.session("alice").info.head or "")
    said = [Message.model_validate_json(entry.text or "").content for turn in line for entry in turn.entries]
    assert said.count("Something else.") == 1
    assert "so" in said
    assert "ok" not in said


def test_what_another_thread_has_said_since_is_not_undone(start: Start) -> None:
    engine = start(model_for(ALL), recent_messages=4)
    mine, theirs = Client(engine, STYLES["full"], True, thread="a"), Client(engine, STYLES["full"], True, thread="b")
    with WrittenTokens(engine.model) as written:
        mine.say([mine.message("user", "hi")])
        first = mine.past
        theirs.say([theirs.message("user", "a secret")])
        second = theirs.past
        edited = [user("hello", "new id")]
        again = ask(engine, [first[0]], thread="a", seed=1, temperature=2.0)  # another reply
        third = ask(engine, [first[0], again.reply, *edited], thread="a")
        everything = [*first, *second, again.reply, *edited, third.reply]
        assert written.behind(engine.state("alice")) == [i for m in everything for i in message_ids(m)]
    log = engine.session("alice").log()
    assert [turn.note is None for turn in log] == [True, True, False, True]
    assert "'b' wrote since" in str(log[2].note)


def test_an_edit_leaves_what_another_thread_said_before_it(start: Start) -> None:
    engine = start(model_for(ALL), recent_messages=4)
    mine, theirs = Client(engine, STYLES["full"], True, thread="a"), Client(engine, STYLES["full"], True, thread="b")
    said = [mine.say([mine.message("user", "hi")]), theirs.say([theirs.message("user", "a secret")])]
    mine.say([mine.message("user", "the cat")])
    said.append(mine.edit(1, "a dog"))
    naive = NaiveSession(engine.model, 4)
    for turn in said:
        naive.turn(turn.new, reply=turn.reply.content, thread=turn.thread)
    assert near(engine.state("alice"), naive.state)
    assert all(turn.note is None for turn in engine.session("alice").log())


@pytest.mark.parametrize("recent", [0, 4])
def test_a_question_asked_again_after_another_thread_spoke_is_in_the_prompt(recent: int, start: Start) -> None:
    engine = start(model_for(ALL), recent_messages=recent)
    mine, theirs = Client(engine, STYLES["full"], True, thread="a"), Client(engine, STYLES["full"], True, thread="b")
    mine.say([mine.message("user", "hi")])
    theirs.say([theirs.message("user", "a secret")])
    again = ask(engine, mine.past[:1], thread="a")
    naive = NaiveSession(engine.model, recent)
    naive.turn(mine.turns[0].new, reply=mine.turns[0].reply.content, thread="a")
    naive.turn(theirs.turns[0].new, reply=theirs.turns[0].reply.content, thread="b")
    naive.recent = 0
    naive.turn([], shown=mine.past[:1], reply=again.reply.content, thread="a")
    assert near(engine.state("alice"), naive.state)


def test_a_thread_that_begins_as_a_copy_shows_the_end_of_what_it_copied(start: Start) -> None:
    engine = start(model_for(ALL), recent_messages=2)
    client = Client(engine, STYLES["full"], True, thread="a")
    for text in ("hi", "the cat", "so"):
        client.say([client.message("user", text)])
    new = user("ok", "copy 1")
    copied = ask(engine, [*client.past, new], thread="b")
    naive = NaiveSession(engine.model, 2)
    for turn in client.turns:
        naive.turn(turn.new, reply=turn.reply.content, thread="a")
    naive.turn([new], shown=client.past[-2:], reply=copied.reply.content, thread="b")
    assert near(engine.state("alice"), naive.state)


async def test_calls_that_overlap_are_chained(start: Start) -> None:
    engine = start(model_for(ALL))
    first = await engine.agenerate([user("hi", "1")], session="alice", max_new_tokens=4)
    past = [user("hi", "1"), first.reply]
    calls = [
        engine.agenerate([*past, user(f"message {n}", f"id {n}")], session="alice", max_new_tokens=4) for n in range(4)
    ]
    with WrittenTokens(engine.model) as written:
        written.start_from(engine.state("alice"), [])
        replies = [turn.reply for turn in await asyncio.gather(*calls)]
        line = engine.store.line(engine.session("alice").info.head or "")
        said = [entry.digest for turn in line for entry in turn.entries]
        assert sorted(said) == sorted(m.digest() for m in [*past, *(user(f"message {n}") for n in range(4)), *replies])
        assert len(line) == len(engine.session("alice").log()) == 5
        assert len(written.behind(engine.state("alice"))) == sum(
            len(message_ids(m)) for m in [*(user(f"message {n}") for n in range(4)), *replies]
        )


async def test_the_same_call_made_twice_at_once_writes_its_message_once(start: Start) -> None:
    engine = start()
    first = await engine.agenerate([user("hi", "1")], session="alice", max_new_tokens=4)
    passed = [user("hi", "1"), first.reply, user("ok", "2")]
    calls = [engine.agenerate(passed, session="alice", max_new_tokens=4) for _ in range(2)]
    await asyncio.gather(*calls)
    line = engine.store.line(engine.session("alice").info.head or "")
    assert [[e.message_id for e in turn.entries if e.role == "user"] for turn in line] == [["1"], ["2"], []]


def test_a_handle_of_another_session_is_refused_and_nothing_is_kept(start: Start) -> None:
    engine = start()
    theirs = ask(engine, [user("a secret")], session="bob")
    ask(engine, [user("hi")])
    before = engine.sessions()
    with pytest.raises(SessionError, match=r"message 1 carries the handle .* none of the lines of session 'alice'"):
        ask(engine, [user("a secret"), theirs.reply, user("so?")])
    with pytest.raises(SessionError, match="another session's"):
        ask(engine, [user("a secret"), theirs.reply, user("so?")], session="new")
    assert engine.sessions() == before


def test_handles_go_with_a_fork(start: Start) -> None:
    engine = start(model_for(ALL))
    one, two = user("hi", "1"), user("ok", "2")
    first = ask(engine, [one])
    after = ask(engine, [one, first.reply, two])
    engine.session("alice").fork("branch", at=first.snapshot)
    turn = ask(engine, [one, first.reply, user("so", "3")], session="branch")
    assert near(engine.state("branch"), told(engine, ([one], first.reply), ([user("so")], turn.reply)))
    assert near(engine.state("alice"), told(engine, ([one], first.reply), ([two], after.reply)))
    with pytest.raises(SessionError, match="none of the lines"):
        ask(engine, [one, first.reply, two, after.reply, user("and?")], session="branch")


def test_rollback_goes_back_and_forward(start: Start) -> None:
    engine = start(model_for(ALL), recent_messages=2)
    session = engine.session("alice")
    turns, states = [], [engine.model.zero_state()]
    for number in range(3):
        turns.append(ask(engine, [user(f"message {number}")]))
        states.append(engine.state("alice"))
    assert session.rollback(turns=2) == turns[0].snapshot
    assert torch.equal(engine.state("alice").tensor, states[1].tensor)
    assert session.rollback(to=turns[2].snapshot) == turns[2].snapshot
    assert torch.equal(engine.state("alice").tensor, states[3].tensor)
    assert session.rollback(turns=3) is None
    with pytest.raises(SessionNotFoundError, match="alice"):
        engine.state("alice")
    fresh = ask(engine, [user("hello")])
    assert near(engine.state("alice"), told(engine, ([user("hello")], fresh.reply)))
    assert len(session.log()) == 4


def test_rollback_says_what_is_wrong(start: Start) -> None:
    engine = start(keep_snapshots=4, recent_messages=0)
    other = ask(engine, [user("hi")], session="bob")
    turns = [ask(engine, [user(f"message {number}")]) for number in range(9)]
    session = engine.session("alice")
    with pytest.raises(SessionError, match="exactly one"):
        session.rollback()
    with pytest.raises(SessionError, match="another session's, or was pruned"):
        session.rollback(to=other.snapshot)
    with pytest.raises(SessionError, match="pruned"):
        session.rollback(to=turns[0].snapshot)
    with pytest.raises(SessionError, match="the last 4 are kept"):
        session.rollback(turns=6)
    with pytest.raises(SessionError, match="has 9"):
        session.rollback(turns=10)
    with pytest.raises(SessionNotFoundError, match="nobody"):
        engine.session("nobody").rollback(turns=1)
    assert session.info.head == turns[-1].snapshot


def test_going_back_before_what_was_pruned_is_refused(start: Start) -> None:
    engine = start(keep_snapshots=2, recent_messages=0)
    client = Client(engine, STYLES["full"], ids=True)
    for number in range(6):
        client.say([client.message("user", f"message {number}")])
    head = engine.session("alice").info.head
    with pytest.raises(SessionError, match=r"none of the lines|was pruned"):
        ask(engine, client.past[:5])
    assert engine.session("alice").info.head == head
    client.say([client.message("user", "go on")])  # a full history, whose beginning is pruned, is as good as ever
    assert engine.session("alice").info.messages == 14


def test_an_absorption_with_a_key_is_made_once(start: Start) -> None:
    engine = start(model_for(ALL))
    session = engine.session("alice")
    first = session.absorb([user("I am Ann.")], key="import 1")
    assert session.absorb([user("I am Ann.")], key="import 1") == first
    second = session.absorb([user("I am Ann.")], key="import 2")
    assert [turn.id for turn in session.log()] == [first, second]
    session.rollback(turns=2)
    assert session.absorb([user("I am Ann.")], key="import 1") != first
    with pytest.raises(SessionError, match="key"):
        session.absorb([user("hi")], key="")


def test_a_history_that_ends_with_a_reply_undoes_nothing(start: Start) -> None:
    """Another agent is to go on from it, maybe from an older state of a graph: what was said since stays."""
    engine = start()
    client = Client(engine, STYLES["full"], ids=True)
    client.say([client.message("user", "hi")])
    client.say([client.message("user", "ok")])
    past = list(client.past)
    for number, passed in enumerate((past, past[:2], past[:2]), 1):
        head = engine.session("alice").info.head
        ask(engine, passed)
        info = engine.session("alice").info
        assert (info.messages, engine.store.snapshot(info.head or "").parent) == (4 + number, head)


@pytest.mark.parametrize("recent", [2, 8])
def test_a_rebuilt_session_is_what_the_other_adapter_would_remember(recent: int, start: Start) -> None:
    old, new = model_for(ALL), model_for(("user",))
    engine = start(old, transcript="full", recent_messages=recent)
    client = Client(engine, STYLES["full"], ids=True)
    for text in ("hi", "the cat", "ok", "so"):
        client.say([client.message("user", text)])
    other = start(new, transcript="full", recent_messages=recent)
    assert other.session("alice").rebuild() == 4
    naive = NaiveSession(new, recent)
    for turn in client.turns:
        naive.turn(turn.new, reply=turn.reply.content)
    assert near(other.state("alice"), naive.state)
    client.engine = other
    onward = client.say([client.message("user", "hi")])  # ids and handles are known as before
    naive.turn(onward.new, reply=onward.reply.content)
    assert near(other.state("alice"), naive.state)


def test_a_session_without_its_texts_cannot_be_rebuilt(start: Start) -> None:
    engine = start(transcript="none")
    for text in ("hi", "ok"):
        ask(engine, [user(text)])
    head = engine.session("alice").info.head
    other = start(model_for(("user",)))
    with pytest.raises(SessionError, match=r"texts of \d of its 4 messages are not kept"):
        other.rebuild("alice")
    assert other.session("alice").info.head == head


def test_an_exported_session_goes_on_elsewhere_without_absorbing_twice(start: Start, tmp_path: Path) -> None:
    engine = start(model_for(ALL), recent_messages=2)
    client = Client(engine, STYLES["full"], ids=True)
    for text in ("hi", "the cat", "ok"):
        client.say([client.message("user", text)])
    assert engine.session("alice").export(tmp_path / "alice.deltamem") == 3
    elsewhere = start(model_for(ALL), recent_messages=2, store=tmp_path / "other.db")
    assert elsewhere.import_session(tmp_path / "alice.deltamem").name == "alice"
    assert torch.equal(elsewhere.state("alice").tensor, engine.state("alice").tensor)
    client.engine = elsewhere
    client.regenerate()
    client.say([client.message("user", "so")])
    naive = NaiveSession(engine.model, 2)
    for turn in client.turns:
        naive.turn(turn.new, reply=turn.reply.content)
    assert near(elsewhere.state("alice"), naive.state)
