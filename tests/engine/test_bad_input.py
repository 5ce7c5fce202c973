"""Whatever is wrong is said with what was found, what was expected and what to do; the engine goes on afterwards."""

from collections.abc import Callable

import pytest

from deltamem_agents import (
    ConfigError,
    ContextOverflowError,
    DeltaMemEngine,
    DeltaMemError,
    GenerationError,
    Message,
    MessageError,
    SessionError,
    SessionNotFoundError,
)
from tests.builders import adapted
from tests.chat import chat_backbone
from tests.engine.conftest import Start, model_for
from tests.engine.reference import message_ids
from tests.engine.saying import goes_on, user

Call = Callable[[DeltaMemEngine], object]


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


MESSAGES: list[tuple[object, str]] = [
    ([], "messages is empty: give at least one"),
    ("hi", "got a single str: wrap it in a list"),
    ({"role": "user", "content": "hi"}, "got a single dict"),
    (user("hi"), "got a single Message"),
    (None, "got NoneType"),
    (5, "got int"),
    ([{"role": "robot", "content": "hi"}], "message 0 is not valid .*role.*'assistant'"),
    ([{"role": "user"}], "message 0 .*content"),
    ([{"role": "user", "content": None}], "message 0 .*content.*string"),
    ([{"role": "user", "content": [{"type": "text"}]}], "message 0 .*part of type 'text' holds None"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "message 0 .*this is a text model, expected parts of"),
    ([user("hi"), {"role": "user", "content": "hi", "name": "x"}], "message 1 .*name"),
    ([{"role": "user", "content": "hi", "id": 5}], "message 0 .*id.*string"),
    ([{"role": "user", "content": "\ud800"}], "message 0 .*content"),
    (["hi"], "message 0"),
]


@pytest.mark.parametrize(("messages", "says"), MESSAGES)
def test_messages_that_are_none(messages: object, says: str, engine: DeltaMemEngine) -> None:
    with pytest.raises(MessageError, match=f"(?s){says}"):
        engine.generate(messages, session="alice")  # type: ignore[arg-type]
    assert engine.sessions() == []
    goes_on(engine)


@pytest.mark.parametrize("recent", [0, 8])
def test_a_history_that_ends_with_the_assistant_gets_another_reply(recent: int, start: Start) -> None:
    """As when agents speak one after the other; nothing is absorbed twice, and nothing is undone."""
    engine = start(recent_messages=recent)
    first = engine.generate([user("hi")], session="alice", max_new_tokens=2)
    for history in ([user("hi"), first.reply], [user("hi"), assistant(first.reply.content)]):
        before = engine.sessions()[0]
        turn = engine.generate(history, session="alice", max_new_tokens=2)
        log = engine.session("alice").log()
        assert (engine.sessions()[0].messages, log[-1].parent) == (before.messages + 1, before.head)
        assert [entry.message_id for entry in log[-1].entries] == [turn.snapshot]
        engine.session("alice").rollback(turns=1)
    assert engine.generate([user("hi"), assistant("ho")], max_new_tokens=2).usage.completion_tokens > 0


def test_an_unknown_assistant_at_the_end_is_kept_as_the_assistants(start: Start) -> None:
    engine = start()
    engine.generate([user("hi"), assistant("I am the other agent")], session="alice", max_new_tokens=2)
    roles = [entry.role for entry in engine.session("alice").log()[0].entries]
    assert roles == ["user", "assistant", "assistant"]


def test_a_prompt_of_a_system_message_alone(start: Start) -> None:
    engine = start()
    system = Message(role="system", content="Greet the user.")
    alone = engine.generate([system], max_new_tokens=4)
    turn = engine.generate([system], session="alice", max_new_tokens=4)
    assert turn.reply.content == alone.reply.content
    (log,) = engine.session("alice").log()
    assert [entry.role for entry in log.entries] == ["assistant"]
    assert engine.state("alice").tensor.abs().sum() == 0
    again = engine.generate([system, turn.reply, user("hi")], session="alice", max_new_tokens=2)
    assert [entry.role for entry in engine.store.snapshot(again.snapshot or "").entries] == ["user", "assistant"]


NAMES: list[tuple[object, str]] = [
    ("", "0 characters"),
    (" alice", "blanks"),
    ("a\nb", "printable"),
    ("a\0b", "printable"),
    ("\ud800", "printable"),
    ("x" * 201, "201 characters.*1 to 200"),
    (5, "got int: 5"),
    (b"alice", "got bytes"),
]

CALLS: list[Call] = []


@pytest.mark.parametrize(("name", "says"), NAMES)
def test_bad_session_names(name: str, says: str, engine: DeltaMemEngine) -> None:
    calls: list[Callable[[], object]] = [
        lambda: engine.generate([user("hi")], session=name),
        lambda: engine.stream([user("hi")], session=name),
        lambda: engine.astream([user("hi")], session=name),
        lambda: engine.batch([[user("hi")]], sessions=[name]),
        lambda: engine.absorb([user("hi")], session=name),
        lambda: engine.state(name),
        lambda: engine.forget(name),
        lambda: engine.generate([user("hi")], session="alice", thread=name or " "),
    ]
    for call in calls:
        with pytest.raises(SessionError):
            call()
    with pytest.raises(SessionError, match=f"(?s){says}"):
        engine.generate([user("hi")], session=name)
    assert engine.sessions() == []
    goes_on(engine)


@pytest.mark.parametrize("name", ["alice", "Ünï 漢字 🦊", "a/b:c'\"; --", "x" * 200, "%_*"])
def test_any_printable_name_is_a_session(name: str, engine: DeltaMemEngine) -> None:
    engine.generate([user("hi")], session=name, max_new_tokens=2)
    assert [info.name for info in engine.sessions(prefix=name)] == [name]
    engine.forget(name)
    assert engine.sessions() == []


def test_sessions_that_do_not_exist(engine: DeltaMemEngine) -> None:
    for call in (engine.state, engine.forget):
        with pytest.raises(SessionNotFoundError, match="nobody"):
            call("nobody")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"memory": "write"}, ConfigError, "'write', expected one of read_write, read, off"),
        ({"memory": None}, ConfigError, "expected one of"),
        ({"recent_messages": -1}, ConfigError, "recent_messages is -1, expected a whole number, 0 or more"),
        ({"recent_messages": 2.5}, ConfigError, "recent_messages is 2.5"),
        ({"recent_messages": "8"}, ConfigError, "recent_messages is '8'"),
        ({"max_tokens": 5}, GenerationError, "max_tokens.*known are max_new_tokens"),
        ({"temperature": -1}, GenerationError, "temperature"),
    ],
)
def test_bad_options_of_a_call(
    options: dict[str, object], error: type[DeltaMemError], says: str, engine: DeltaMemEngine
) -> None:
    with pytest.raises(error, match=says):
        engine.generate([user("hi")], session="alice", **options)  # type: ignore[arg-type]
    assert engine.sessions() == []
    goes_on(engine)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"transcript": "some"}, "'some', expected one of window, full, none"),
        ({"recent_messages": -1}, "recent_messages is -1"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens is 0, expected a whole number, 1 or more"),
        ({"max_prompt_tokens": "many"}, "max_prompt_tokens is 'many'"),
        ({"cache_bytes": -1}, "cache_bytes is -1"),
    ],
)
def test_bad_options_of_an_engine(options: dict[str, object], says: str, start: Start) -> None:
    with pytest.raises(ConfigError, match=says):
        start(**options)


def test_a_message_longer_than_the_context_names_the_numbers(start: Start) -> None:
    engine = start(model_for(context=256))
    long = user("word " * 100)
    tokens = len(message_ids(long))
    for call in (
        lambda: engine.generate([user("hi"), long], session="alice", max_new_tokens=20),
        lambda: engine.absorb([user("hi"), long], session="alice"),
    ):
        with pytest.raises(ContextOverflowError, match=rf"new message 1 \(user\) has {tokens} tokens.*context 256"):
            call()
    assert engine.sessions() == []
    with pytest.raises(ContextOverflowError, match=r"the prompt has \d+ tokens, but \d+ fit .*name a session"):
        engine.generate([long], max_new_tokens=20)
    with pytest.raises(ContextOverflowError, match=r"system prompt and shown context take \d+ tokens"):
        engine.generate([Message(role="system", content="word " * 100), user("hi")], session="alice", max_new_tokens=20)
    with pytest.raises(ConfigError, match=r"max_new_tokens is 1000, and the model's context is 256 .*at most 247"):
        engine.generate([user("hi")], session="alice", max_new_tokens=1000)
    goes_on(engine)


@pytest.mark.parametrize("family", ["OPT", "Llama"])
def test_a_prompt_and_reply_that_just_fit_do(family: str, start: Start) -> None:
    """OPT has an embedding for each position: one token too many would be an error."""
    model = adapted(backbone=chat_backbone(family, context=128), absorb_roles=("user", "assistant"))
    engine = start(model)
    lengths = iter(range(128, 0, -1))
    while True:
        try:
            turn = engine.generate([user("x" * next(lengths))], session="alice", max_new_tokens=20)
            break
        except ContextOverflowError:
            pass
    assert 128 - 20 - 10 < turn.usage.prompt_tokens <= 128 - 20
