"""The state after a turn is a function of the state at the window's start and of the messages in the window."""

import pytest
import torch

from deltamem_agents import DeltaMemEngine, MemoryState, Message, MessageLike, Turn
from tests.engine.conftest import Start, model_for
from tests.engine.ledger import WrittenTokens
from tests.engine.reference import NaiveSession, message_ids

USER, TOOLS, ALL = ("user",), ("user", "tool"), ("user", "assistant", "tool")
TOKENS = 5
CONVERSATION = [
    [("user", "hi")],
    [("user", "a cat. Old.\nSo!")],
    [("user", "ok"), ("tool", "12 degrees")],
    [("user", "hi")],
    [("tool", "the end")],
    [("user", "ok")],
]


def user(text: str) -> Message:
    return Message(role="user", content=text)


def said(number: int) -> list[Message]:
    return [Message.model_validate({"role": role, "content": text}) for role, text in CONVERSATION[number]]


def near(state: MemoryState, expected: MemoryState) -> bool:
    difference = (state.tensor - expected.tensor).norm()
    return bool(difference <= 1e-3 * expected.tensor.norm())


def reply(engine: DeltaMemEngine, messages: list[Message], session: str = "alice", **options: object) -> Turn:
    return engine.generate(list[MessageLike](messages), session=session, max_new_tokens=TOKENS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("roles", "granularity", "recent"),
    [
        *((TOOLS, "token", recent) for recent in (0, 1, 2, 4, 8)),
        (USER, "token", 4),
        *((ALL, "token", recent) for recent in (0, 4)),
        *((roles, "message_mean", 4) for roles in (TOOLS, ALL)),
        (ALL, "sentence_mean", 4),
    ],
)
def test_every_state_and_reply_is_that_of_a_replay_with_a_warm_cache_and_without(
    roles: tuple[str, ...], granularity: str, recent: int, start: Start
) -> None:
    model = model_for(roles, granularity)
    naive = NaiveSession(model, recent)
    warm = start(model, recent_messages=recent, store=":memory:")
    cached = 0
    for number in range(len(CONVERSATION)):
        expected = naive.turn(said(number), most=TOKENS)
        turn = reply(warm, said(number))
        cold = reply(start(model, recent_messages=recent), said(number))  # a new engine on the same file each time
        assert turn.reply.content == cold.reply.content == expected, number
        assert near(warm.state("alice"), naive.state), number
        assert near(start(model).state("alice"), naive.state), number
        cached += turn.usage.cached_tokens
    assert cached or recent < 4, "the warm cache serves the turns between two moves of the window"


@pytest.mark.parametrize("other", ["alone", "in a batch"])
def test_a_call_that_only_reads_leaves_the_warm_cache_as_it_was(other: str, start: Start) -> None:
    model = model_for()
    engine, undisturbed = start(model, store=":memory:"), start(model, store=":memory:")
    cached = []
    for number in range(len(CONVERSATION)):
        if other == "alone":
            engine.generate([user("what?")], session="alice", memory="read", max_new_tokens=TOKENS)
        else:
            engine.batch(
                [[user("what?")], [user("how long is a river?")]],
                sessions=["alice", None],
                memory="read",
                max_new_tokens=TOKENS,
            )
        turn, expected = reply(engine, said(number)), reply(undisturbed, said(number))
        assert turn.reply.content == expected.reply.content
        assert near(engine.state("alice"), undisturbed.state("alice"))
        assert turn.usage.cached_tokens == expected.usage.cached_tokens
        cached.append(turn.usage.cached_tokens)
    assert any(cached)


def test_the_memory_changes_replies(start: Start) -> None:
    engine = start(recent_messages=0)
    first = reply(engine, [user("hi")])
    assert reply(engine, [user("hi")]).reply.content != first.reply.content


@pytest.mark.parametrize("granularity", ["token", "message_mean", "sentence_mean"])
@pytest.mark.parametrize("roles", [USER, ALL])
@pytest.mark.parametrize("recent", [0, 2, 4])
def test_each_message_is_in_the_state_exactly_once(
    roles: tuple[str, ...], granularity: str, recent: int, start: Start
) -> None:
    model = model_for(roles, granularity)
    with WrittenTokens(model) as written:
        messages: list[Message] = []
        engine = start(model, recent_messages=recent, store=":memory:")
        for number in range(5):
            turn = reply(engine, said(number))
            messages += [*said(number), turn.reply]
            expected = [i for m in messages if m.role in roles for i in message_ids(m)]
            assert written.behind(engine.state("alice")) == expected


def histories() -> dict[str, object]:
    """How frameworks pass a conversation: each gives the messages of a call from all that was said so far."""
    summary = Message(role="user", content="(earlier: a talk)")
    system = Message(role="system", content="Be brief.")
    return {
        "full": lambda past, new: [*past, *new],
        "only new": lambda past, new: new,
        "last three": lambda past, new: [*past, *new][-3:] if len(new) < 3 else new,
        "first and last": lambda past, new: [*past[:1], *past[-2:], *new] if len(past) > 3 else [*past, *new],
        "summary in front": lambda past, new: [summary, *past[-2:], *new] if past else new,
        "system and full": lambda past, new: [system, *past, *new],
        "cleared tool output": lambda past, new: [
            *(m.model_copy(update={"content": "[gone]"}) if m.role == "tool" else m for m in past),
            *new,
        ],
    }


@pytest.mark.parametrize("kind", histories())
@pytest.mark.parametrize("ids", [False, True])
def test_histories_passed_in_any_form_write_each_message_once(kind: str, ids: bool, start: Start) -> None:
    passed, model = histories()[kind], model_for(ALL)
    engine, past = start(model, recent_messages=4), list[Message]()
    with WrittenTokens(model) as written:
        for number in range(len(CONVERSATION)):
            new = said(number)
            if ids:
                new = [m.model_copy(update={"id": f"{number}.{place}"}) for place, m in enumerate(new)]
            turn = reply(engine, passed(past, new))  # type: ignore[operator]
            past += [*new, turn.reply if ids else turn.reply.model_copy(update={"id": None})]
            assert written.behind(engine.state("alice")) == [i for m in past for i in message_ids(m)], number


def test_what_the_session_does_not_know_is_shown_and_not_written(start: Start) -> None:
    model = model_for()
    engine, naive = start(model, recent_messages=4), NaiveSession(model, 4)
    system, summary = Message(role="system", content="Be brief."), user("(earlier: a talk)")
    past: list[Message] = []
    for number in range(4):
        shown = [system, summary] if past else [system]
        expected = naive.turn(said(number), shown=shown, most=TOKENS)
        turn = reply(engine, [*shown, *past[-2:], *said(number)])
        assert turn.reply.content == expected
        assert near(engine.state("alice"), naive.state)
        past += [*said(number), turn.reply]


def test_absorbed_messages_are_part_of_the_line(start: Start) -> None:
    model = model_for()
    engine, naive = start(model, recent_messages=2), NaiveSession(model, 2)
    engine.absorb([user("I am Ann."), Message(role="assistant", content="Hello.")], session="alice")
    naive.absorb([user("I am Ann."), Message(role="assistant", content="Hello.")])
    assert near(engine.state("alice"), naive.state)
    engine.absorb([user("My cat is Tom.")], session="alice")
    naive.absorb([user("My cat is Tom.")])
    assert near(engine.state("alice"), naive.state)
    assert reply(engine, [user("hi")]).reply.content == naive.turn([user("hi")], most=TOKENS)
    assert near(engine.state("alice"), naive.state)


def test_absorbed_messages_can_be_replied_to(start: Start) -> None:
    model = model_for()
    engine, naive = start(model, recent_messages=2), NaiveSession(model, 2)
    engine.absorb([user("hi"), user("who is the user?")], session="alice")
    naive.absorb([user("hi"), user("who is the user?")])
    assert reply(engine, [user("who is the user?")]).reply.content == naive.turn([], most=TOKENS)
    assert near(engine.state("alice"), naive.state)
    info = engine.sessions()[0]
    assert (info.turns, info.messages) == (2, 3)


@pytest.mark.parametrize("roles", [USER, ALL])
def test_new_messages_that_cannot_all_fit_are_absorbed_in_groups(roles: tuple[str, ...], start: Start) -> None:
    model = model_for(roles, context=256)
    engine = start(model)
    reply(engine, [user("hi")])
    many = [user(f"{number} is the number of the house") for number in range(20)]
    sizes = [len(message_ids(m)) for m in many]
    assert sum(sizes) > 256
    with WrittenTokens(model) as written:
        written.start_from(engine.state("alice"), [])
        turn = reply(engine, many)
        past = [*many, turn.reply]
        assert written.behind(engine.state("alice")) == [i for m in past if m.role in roles for i in message_ids(m)]
    assert turn.usage.prompt_tokens <= 256
    again = reply(engine, [user("ok")])  # the next turn goes on as usual
    assert again.snapshot is not None
    assert engine.sessions()[0].messages == 2 + 21 + 2


def test_histories_longer_than_the_context_lose_nothing(start: Start) -> None:
    model = model_for(ALL, context=256)
    engine, past = start(model, recent_messages=100), list[Message]()
    with WrittenTokens(model) as written:
        for number in range(16):
            new = user(f"message {number} in a long talk")
            turn = reply(engine, [*past, new])
            assert turn.usage.prompt_tokens + TOKENS <= 256
            past += [new, turn.reply]
            assert written.behind(engine.state("alice")) == [i for m in past for i in message_ids(m)]


def test_max_prompt_tokens_bounds_every_prompt(start: Start) -> None:
    engine = start(max_prompt_tokens=300, recent_messages=100)
    cached = []
    for number in range(16):
        turn = reply(engine, [user(f"number {number}")])
        assert turn.usage.prompt_tokens <= 300
        cached.append(turn.usage.cached_tokens > 0)
    assert sum(cached[8:]) >= 3, "the window moves in blocks, so the cache serves some turns between"


def test_a_smaller_window_for_one_call_does_not_cost_the_next_its_own(start: Start) -> None:
    model = model_for()
    engine, naive = start(model, recent_messages=4), NaiveSession(model, 4)
    for text in ("hi", "the cat is Tom", "ok"):
        reply(engine, [user(text)])
        naive.turn([user(text)], most=TOKENS)
    naive.recent = 0
    assert reply(engine, [user("ok")], recent_messages=0).reply.content == naive.turn([user("ok")], most=TOKENS)
    naive.recent = 4
    assert reply(engine, [user("hi")]).reply.content == naive.turn([user("hi")], most=TOKENS)
    assert near(engine.state("alice"), naive.state)


def test_without_texts_there_is_no_window_but_the_memory_goes_on(start: Start) -> None:
    model = model_for()
    engine, naive = start(model, transcript="none"), NaiveSession(model, 0)
    past: list[Message] = []
    for number in range(4):
        expected = naive.turn([user(f"{number} hi")], most=TOKENS)
        turn = reply(engine, [*past, user(f"{number} hi")])
        assert turn.reply.content == expected
        past += [user(f"{number} hi"), turn.reply]
    assert near(engine.state("alice"), naive.state)
    line = engine.store.line(engine.sessions()[0].head or "")
    assert all(entry.text is None for snapshot in line for entry in snapshot.entries)


@pytest.mark.parametrize("transcript", ["window", "full"])
def test_texts_are_kept_as_the_transcript_says(transcript: str, start: Start) -> None:
    engine = start(transcript=transcript, recent_messages=1, keep_snapshots=4)
    for number in range(6):
        reply(engine, [user(f"{number} hi")])
    entries = [e for s in engine.store.line(engine.sessions()[0].head or "") for e in s.entries]
    assert len(entries) == (12 if transcript == "full" else 8)
    assert all((e.text is None) == (transcript == "none") for e in entries)


def test_a_reply_that_tokenises_differently_is_kept_as_its_text_says(start: Start) -> None:
    """The model may spell "the" in three tokens; the next turn, warm or cold, reads it in one."""
    model = model_for(ALL)
    warm, cold = start(model, store=":memory:"), start(model)
    for number in range(5):
        a, b = reply(warm, [user(f"{number}")], temperature=3.0, seed=number), None
        cold = start(model)
        b = reply(cold, [user(f"{number}")], temperature=3.0, seed=number)
        assert a.reply.content == b.reply.content
        assert near(warm.state("alice"), cold.state("alice"))


@pytest.mark.parametrize("ended", ["length", "stop string"])
@pytest.mark.parametrize("granularity", ["token", "message_mean"])
def test_a_reply_is_in_the_memory_as_it_was_given_however_it_ended(ended: str, granularity: str, start: Start) -> None:
    model = model_for(ALL, granularity)
    engine, naive = start(model), NaiveSession(model, 8)
    first = reply(engine, [user("hi")])
    options = {"stop": [first.reply.content[3:5]]} if ended == "stop string" else {}
    other = reply(engine, [user("hi")], session="bob", **options)
    assert other.finish_reason == ("stop" if options else "length")
    naive.turn([user("hi")], most=TOKENS, reply=other.reply.content)
    assert near(engine.state("bob"), naive.state)


def test_states_stay_float32_and_on_the_line(start: Start) -> None:
    engine = start()
    turns = [reply(engine, [user(f"{number}")]) for number in range(3)]
    assert engine.state("alice").tensor.dtype == torch.float32
    line = engine.store.line(turns[-1].snapshot or "")
    assert [s.id for s in line] == [t.snapshot for t in turns]
    assert [(s.turn, s.messages) for s in line] == [(1, 2), (2, 4), (3, 6)]
    assert all(e.tokens == len(message_ids(Message.model_validate_json(e.text or ""))) for s in line for e in s.entries)
