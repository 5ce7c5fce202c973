"""Messages longer than the context: kept whole, shown as far as they fit, and the conversation goes on."""

import pytest

from deltamem_agents import ContextOverflowError, DeltaMemEngine, Message, ToolCall
from tests.engine.conftest import Start, model_for

LONG = "the cat is as " * 300
CALL = Message(role="assistant", content="", tool_calls=(ToolCall(name="read", arguments={}, id="a"),))
ANSWER = Message(role="tool", content=LONG, tool_call_id="a", name="read")


def user(text: str) -> Message:
    return Message(role="user", content=text)


def shown(engine: DeltaMemEngine, session: str) -> list[Message]:
    head = engine.session(session).info.head
    turns = engine.store.line(head or "")
    return [Message.model_validate_json(entry.text or "") for turn in turns for entry in turn.entries]


@pytest.mark.parametrize("roles", [("user",), ("user", "tool")])
def test_a_tool_answer_longer_than_the_context(roles: tuple[str, ...], start: Start) -> None:
    engine = start(model_for(roles, context=512))
    history = [user("What does it say?"), CALL, ANSWER]
    turn = engine.generate(history, session="alice", max_new_tokens=8)
    assert 250 < turn.usage.prompt_tokens <= 512 - 8
    question, call, answer, _ = shown(engine, "alice")
    assert (question, call.tool_calls) == (history[0], CALL.tool_calls)
    assert (answer.content, answer.digest()) == (LONG, ANSWER.digest())
    assert answer.as_shown.content.startswith(LONG[:20])
    assert answer.as_shown.content.endswith(f"[cut here: {answer.cut} of {len(LONG):,} characters are shown]")

    again = engine.generate([*history, turn.reply, user("And?")], session="alice", max_new_tokens=8)
    assert engine.session("alice").info.messages == 6  # it is known, and was not absorbed again
    assert again.usage.cached_tokens > 0
    assert again.usage.prompt_tokens <= 512 - 8


def test_it_reads_the_same_after_a_restart(start: Start) -> None:
    model = model_for(("user", "tool"), context=256)
    warm, history = start(model), [user("What does it say?"), CALL, ANSWER]
    reply = warm.generate(history, session="alice", max_new_tokens=8).reply
    warm.close()
    cold = start(model)
    cold.session("alice").fork("bob")
    for engine, session in ((start(model), "alice"), (cold, "bob")):
        engine.generate([*history, reply, user("And?")], session=session, max_new_tokens=8)
    assert (cold.state("alice").tensor - cold.state("bob").tensor).abs().max() < 1e-5


def test_several_share_the_room_with_the_question(start: Start) -> None:
    engine = start(model_for(context=1024))
    calls = CALL.model_copy(update={"tool_calls": tuple(ToolCall(name="read", arguments={}, id=i) for i in "abc")})
    answers = [ANSWER.model_copy(update={"tool_call_id": i, "content": f"{i} {LONG}"}) for i in "abc"]
    turn = engine.generate([user("Which?"), calls, *answers], session="alice", max_new_tokens=8)
    assert turn.usage.prompt_tokens > 250
    assert all((m.cut or 0) > 0 for m in shown(engine, "alice")[2:5])


def test_whatever_is_not_the_question(start: Start) -> None:
    engine = start(model_for(context=256))
    wrote = CALL.model_copy(update={"tool_calls": (ToolCall(name="write", arguments={"text": LONG, "n": 5}, id="a"),)})
    history = [user(LONG), Message(role="assistant", content=LONG), wrote, ANSWER, user("So?")]
    turn = engine.generate(history, session="alice", max_new_tokens=8)
    engine.generate([*history, turn.reply, user("Why?")], session="alice", max_new_tokens=8)
    assert [m.content for m in shown(engine, "alice")][:5] == [m.content for m in history]
    assert engine.session("alice").info.messages == 8
    injected = [Message(role="assistant", content=f"Notes: {LONG}"), *history, turn.reply, user("Why?"), user("Now?")]
    engine.generate(injected, session="alice", max_new_tokens=8)


def test_the_question_itself_is_the_callers_to_shorten(start: Start) -> None:
    engine = start(model_for(context=256))
    for call in (
        lambda: engine.generate([ANSWER, user(LONG)], session="alice", max_new_tokens=8),
        lambda: engine.absorb([user(LONG), user("hi")], session="alice"),
    ):
        with pytest.raises(ContextOverflowError, match=r"\(user\) has \d+ tokens, but \d+ fit"):
            call()
    assert engine.sessions() == []
    engine.absorb([user("hi"), ANSWER], session="alice")
    assert engine.session("alice").info.messages == 2
