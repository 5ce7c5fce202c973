"""One message is forgotten: the session is what it would be if it had never been said, and purging leaves no trace."""

import sqlite3
from pathlib import Path

import pytest
import torch

from deltamem_agents import DeltaMemEngine, Message, SessionError, SessionNotFoundError, SQLStore
from tests.engine.conftest import Start, model_for

SECRET = "My sister's number is 5551234567."


def user(text: str, id: str | None = None) -> Message:
    return Message(role="user", content=text, id=id)


def told(engine: DeltaMemEngine, name: str, *texts: str) -> list[str]:
    return [engine.absorb([user(text)], session=name) for text in texts]


def close(a: DeltaMemEngine, first: str, second: str) -> bool:
    return torch.allclose(a.state(first).tensor, a.state(second).tensor, atol=1e-5)


@pytest.mark.parametrize("recent", [0, 2])
def test_the_memory_is_what_it_would_be_without_the_message(start: Start, recent: int) -> None:
    engine = start(recent_messages=recent)
    ids = told(engine, "alice", "one", "two", SECRET, "three", "four", "five")
    told(engine, "never", "one", "two", "three", "four", "five")
    assert not close(engine, "alice", "never")
    head = engine.forget_message("alice", f"{ids[2]}/0")
    assert close(engine, "alice", "never")
    info = engine.info("alice")
    assert (info.head, info.turns, info.messages) == (head, 5, 5)


def test_a_message_is_found_by_its_frameworks_id_and_its_reply_stays(start: Start) -> None:
    engine = start()
    engine.generate([user("hi", id="m-1")], session="alice", max_new_tokens=4)
    reply = engine.generate([user(SECRET, id="m-2")], session="alice", max_new_tokens=4).reply
    engine.forget_message("alice", "m-2")
    line = engine.store.line(engine.info("alice").head or "")
    assert [entry.role for turn in line for entry in turn.entries] == ["user", "assistant", "assistant"]
    assert line[-1].entries[0].message_id == reply.snapshot  # handles go on working
    assert line[-1].note is not None
    assert "message 3" in line[-1].note
    again = engine.generate([reply, user("and?")], session="alice", max_new_tokens=4)
    assert engine.info("alice").head == again.snapshot


def test_it_can_be_taken_back(start: Start) -> None:
    engine = start()
    ids = told(engine, "alice", "one", SECRET, "two")
    before = engine.state("alice").tensor
    engine.forget_message("alice", f"{ids[1]}/0")
    assert engine.rollback("alice", ids[2]) == ids[2]
    assert torch.equal(engine.state("alice").tensor, before)


def test_the_last_and_the_only_message_can_go(start: Start) -> None:
    engine = start()
    first, second = told(engine, "alice", "one", SECRET)
    assert engine.forget_message("alice", f"{second}/0") == first
    assert engine.forget_message("alice", f"{first}/0", purge=True) is None
    assert engine.info("alice").messages == 0
    assert engine.log("alice") == []


def test_calls_go_with_their_results(start: Start) -> None:
    engine = start()
    call = {"name": "clock", "arguments": {}, "id": "c1"}
    turn = [
        user("what time is it?"),
        Message.model_validate({"role": "assistant", "content": "", "tool_calls": [call]}),
        Message(role="tool", content="noon", tool_call_id="c1"),
    ]
    ids = [engine.absorb(turn[:2], session="alice"), engine.absorb([turn[2], user("thanks")], session="alice")]
    engine.forget_message("alice", f"{ids[0]}/1")
    line = engine.store.line(engine.info("alice").head or "")
    assert [entry.role for turn in line for entry in turn.entries] == ["user", "user"]


def test_purging_leaves_no_byte_of_it(start: Start, tmp_path: Path) -> None:
    engine = start()
    ids = told(engine, "alice", "one", SECRET, "two")
    engine.rollback("alice", ids[1])
    told(engine, "alice", "another line that knows it")
    place = tmp_path / "store.db"
    assert any(b"5551234567" in file.read_bytes() for file in tmp_path.iterdir())
    engine.forget_message("alice", f"{ids[1]}/0", purge=True)
    log = engine.log("alice")
    assert not {ids[1], ids[2]} & {turn.id for turn in log}
    assert [len(turn.entries) for turn in log] == [1, 1]
    assert not any(b"5551234567" in file.read_bytes() for file in tmp_path.iterdir())
    with sqlite3.connect(place) as store:
        assert store.execute("pragma integrity_check").fetchone() == ("ok",)


def test_purging_keeps_lines_that_never_knew_it(start: Start) -> None:
    engine = start()
    first, second = told(engine, "alice", "one", "two")
    engine.rollback("alice", first)
    told(engine, "alice", SECRET)
    engine.forget_message("alice", engine.log("alice")[-1].id + "/0", purge=True)
    assert {turn.id for turn in engine.log("alice")} == {first, second}


def test_purging_is_refused_while_a_fork_knows_it(start: Start) -> None:
    engine = start()
    ids = told(engine, "alice", "one", SECRET)
    engine.fork("alice", "bob")
    with pytest.raises(SessionError, match="'bob' was forked from session 'alice'"):
        engine.forget_message("alice", f"{ids[1]}/0", purge=True)
    assert engine.info("alice").head == ids[1]
    engine.forget_message("bob", f"{ids[1]}/0")
    engine.forget_message("alice", f"{ids[1]}/0", purge=True)
    assert engine.info("bob").messages == 1


def test_what_cannot_be_forgotten_says_why(start: Start) -> None:
    engine = start(transcript="none")
    ids = told(engine, "alice", "one", "two")
    with pytest.raises(SessionError, match="texts of 2 messages since then are not kept"):
        engine.forget_message("alice", f"{ids[0]}/0")
    with pytest.raises(SessionError, match="not on the line"):
        engine.forget_message("alice", f"{ids[0]}/1")
    with pytest.raises(SessionNotFoundError):
        engine.forget_message("nobody", "m")


def test_a_message_before_pruned_snapshots_cannot_be_forgotten_alone(start: Start, tmp_path: Path) -> None:
    engine = start()
    ids = told(engine, "alice", "one", "two", "three")
    with SQLStore(tmp_path / "store.db") as store:
        store.prune("alice", keep=1)
    with pytest.raises(SessionError, match="not on the line"):
        engine.forget_message("alice", f"{ids[0]}/0")
    with pytest.raises(SessionError, match="the state before it was pruned"):
        engine.forget_message("alice", f"{ids[2]}/0")


def test_what_is_remembered_is_asked_and_nothing_is_kept(start: Start) -> None:
    engine = start()
    told(engine, "alice", "My dog is called Rex.", "What is my name?")
    before = engine.info("alice"), engine.state("alice").tensor
    answers = engine.session("alice").remembered(["What is my name?", "What is my dog called?"])
    assert [answer.question for answer in answers] == ["What is my name?", "What is my dog called?"]
    assert engine.info("alice") == before[0]
    assert torch.equal(engine.state("alice").tensor, before[1])
    alone = engine.generate(
        [user("What is my dog called?")], session="alice", memory="read", recent_messages=0, max_new_tokens=48
    )
    assert answers[1].answer == alone.reply.content
    assert len(engine.session("alice").remembered()) > 3
    with pytest.raises(SessionNotFoundError):
        engine.remembered("nobody")


def test_a_session_of_another_adapter_is_refused(start: Start) -> None:
    told(start(), "alice", "one", SECRET)
    other = start(model_for(("user",)))
    line = other.log("alice")
    with pytest.raises(Exception, match="fingerprint"):
        other.forget_message("alice", f"{line[0].id}/0")
