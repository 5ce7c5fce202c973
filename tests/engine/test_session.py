"""A session as an object: the engine's turns with name and thread filled in."""

import pytest

from deltamem_agents import Message, Session, SessionError, SessionNotFoundError, Turn
from tests.engine.conftest import Start


def user(text: str) -> Message:
    return Message(role="user", content=text)


async def test_all_ways_to_talk_make_turns_of_the_session_and_thread(start: Start) -> None:
    session = start().session("alice", thread="phone")
    turns = [session.generate([user("one")], max_new_tokens=3)]
    turns.append(await session.agenerate([user("two")], max_new_tokens=3))
    streamed = list(session.stream([user("three")], max_new_tokens=3))
    turns += [item for item in streamed if isinstance(item, Turn)]
    turns += [item async for item in session.astream([user("four")], max_new_tokens=3) if isinstance(item, Turn)]
    ids = [turn.snapshot for turn in turns]
    ids += [session.absorb([user("five")]), await session.aabsorb([user("six")])]
    assert [snapshot.id for snapshot in session.log()] == ids
    assert {snapshot.thread for snapshot in session.log()} == {"phone"}
    assert "".join(item for item in streamed if isinstance(item, str)) == turns[2].reply.content
    assert (session.info.turns, session.info.messages) == (6, 10)


async def test_a_key_holds_for_both_ways_to_absorb(start: Start) -> None:
    session = start().session("alice")
    first = session.absorb([user("hi")], key="once")
    assert await session.aabsorb([user("hi")], key="once") == first


def test_a_session_that_has_not_begun_says_so(start: Start) -> None:
    session = start().session("alice")
    assert repr(session) == "Session('alice', thread='main')"
    for look in (session.log, lambda: session.info, lambda: session.state, session.forget, session.inspect):
        with pytest.raises(SessionNotFoundError, match="alice"):
            look()
    with pytest.raises(SessionNotFoundError, match="alice"):
        session.fork("bob")


@pytest.mark.parametrize("name", ["", " padded ", "a\nb", "x" * 201])
def test_bad_names_are_refused_at_once(name: str, start: Start) -> None:
    engine = start()
    with pytest.raises(SessionError):
        engine.session(name)
    with pytest.raises(SessionError):
        engine.session("alice", thread=name)
    engine.absorb([user("hi")], session="alice")
    with pytest.raises(SessionError):
        engine.session("alice").fork(name)


def test_a_fork_takes_the_whole_line_or_a_part_of_it(start: Start) -> None:
    session = start().session("alice")
    first, second = session.absorb([user("one")]), session.absorb([user("two")])
    assert isinstance(session.fork("whole"), Session)
    assert session.fork("part", at=first).info.head == first
    assert session.engine.session("whole").info.head == second
    with pytest.raises(SessionError, match="exists already"):
        session.fork("part")
    with pytest.raises(SessionError, match="nowhere"):
        session.fork("other", at="nowhere")
    session.forget()
    assert session.engine.session("part").info.messages == 1  # what others need stays
