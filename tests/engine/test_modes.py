"""`read` keeps nothing; `off`, and no session, are the frozen model; a batch is what each would be alone."""

import pytest
import torch
from transformers import PreTrainedModel

from deltamem_agents import DeltaMemEngine, GenerationError, MemoryState, Message, MessageError, SessionError, Turn
from deltamem_agents.generation import Piece, Row, feed
from tests.chat import byte_tokenizer, chat_backbone, chat_model
from tests.engine.conftest import Start, model_for
from tests.engine.ledger import WrittenTokens
from tests.engine.reference import NaiveSession, encode, message_ids

ALL = ("user", "assistant", "tool")
TOKENS = 6
PROMPT = encode("<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n")


def user(text: str) -> Message:
    return Message(role="user", content=text)


def reply(engine: DeltaMemEngine, text: str, **options: object) -> Turn:
    return engine.generate([user(text)], **{"session": "alice", "max_new_tokens": TOKENS, **options})  # type: ignore[arg-type]


def near(state: MemoryState, expected: MemoryState) -> bool:
    return bool((state.tensor - expected.tensor).norm() <= 1e-3 * expected.tensor.norm())


def frozen_reply(backbone: PreTrainedModel, ids: list[int], most: int) -> list[int]:
    out = backbone.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=most)
    return [i for i in out[0, len(ids) :].tolist() if i != byte_tokenizer().eos_token_id]


def test_read_uses_the_memory_and_keeps_nothing(start: Start) -> None:
    model = model_for()
    engine, naive = start(model), NaiveSession(model, 8)
    reply(engine, "hi")
    naive.turn([user("hi")], most=TOKENS)
    before, state = engine.sessions(), engine.state("alice")
    asked = reply(engine, "the cat", memory="read")
    assert asked.snapshot is None
    assert engine.sessions() == before
    assert torch.equal(engine.state("alice").tensor, state.tensor)
    kept = reply(engine, "the cat")
    assert kept.reply.content == asked.reply.content == naive.turn([user("the cat")], most=TOKENS)
    assert near(engine.state("alice"), naive.state)


def test_reading_creates_no_session(start: Start) -> None:
    engine = start()
    reply(engine, "hi", memory="read")
    assert engine.sessions() == []


def test_what_was_read_and_then_said_again_is_written_once(start: Start) -> None:
    model = model_for()
    engine = start(model)
    with WrittenTokens(model) as written:
        written.start_from(model.zero_state(), [])
        first = reply(engine, "hi")
        asked = reply(engine, "the cat", memory="read")
        past = [user("hi"), first.reply, user("the cat"), asked.reply]
        engine.generate([*past, user("so")], session="alice", max_new_tokens=TOKENS)
        told = [i for m in [*past, user("so")] if m.role == "user" for i in message_ids(m)]
        assert written.behind(engine.state("alice")) == told


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma2", "OPT"])
@pytest.mark.parametrize("options", [{"session": None}, {"memory": "off"}, {"session": None, "memory": "read"}])
def test_without_memory_it_is_the_frozen_model_bit_for_bit(
    family: str, options: dict[str, object], start: Start
) -> None:
    model = chat_model(family)
    engine = start(model, store=":memory:")
    absorbed = [user("something else entirely")]
    engine.absorb(absorbed, session="alice")
    turn = reply(engine, "the cat", max_new_tokens=16, **options)
    assert turn.snapshot is None
    expected = frozen_reply(chat_backbone(family), PROMPT, 16)
    assert turn.reply.content == byte_tokenizer().decode(expected, skip_special_tokens=True)
    assert turn.usage.prompt_tokens == len(PROMPT)
    logits = feed(model, Row(model.zero_state()), [Piece(tuple(PROMPT), write=False)])[1]
    last = torch.tensor([len(PROMPT) - 1])
    assert torch.equal(logits, chat_backbone(family)(torch.tensor([PROMPT]), logits_to_keep=last).logits[0, -1])


def test_without_memory_the_session_is_not_even_looked_up(start: Start) -> None:
    engine = start()
    off = reply(engine, "hi", memory="off", session="nobody")
    assert off.reply.content == reply(engine, "hi", session=None).reply.content
    assert engine.sessions() == []


def test_without_memory_the_whole_history_is_the_prompt(start: Start) -> None:
    history = [user("hi"), Message(role="assistant", content="ok"), user("the cat")]
    turn = start().generate(history, max_new_tokens=TOKENS)
    assert turn.usage.prompt_tokens == len(PROMPT) + len(message_ids(history[0])) + len(message_ids(history[1]))


@pytest.mark.parametrize("roles", [("user",), ALL])
@pytest.mark.parametrize("granularity", ["token", "message_mean"])
def test_a_batch_is_what_each_would_be_alone(roles: tuple[str, ...], granularity: str, start: Start) -> None:
    model = model_for(roles, granularity)
    together, alone = start(model, recent_messages=2), start(model, store=":memory:", recent_messages=2)
    names: list[str | None] = ["alice", "bob", "carol", None]
    for number in range(3):
        texts = [f"{number} {'the cat is here. ' * place}" for place in range(4)]
        turns = together.batch([[user(text)] for text in texts], sessions=names, max_new_tokens=TOKENS)
        for text, name, turn in zip(texts, names, turns, strict=True):
            expected = reply(alone, text, session=name)
            assert (turn.reply.content, turn.usage, turn.session) == (expected.reply.content, expected.usage, name)
    for name in ("alice", "bob", "carol"):
        assert near(together.state(name), alone.state(name))


def test_replies_of_a_batch_may_end_at_different_times(start: Start) -> None:
    together, alone = start(), start(store=":memory:")
    names = ["alice", "bob", "carol"]
    stop = [reply(alone, "hi", session=None).reply.content[2]]
    for number in range(3):
        turns = together.batch([[user(f"{number} {n}")] for n in names], sessions=names, max_new_tokens=12, stop=stop)
        expected = [reply(alone, f"{number} {n}", session=n, max_new_tokens=12, stop=stop) for n in names]
        assert [t.reply.content for t in turns] == [e.reply.content for e in expected]
        assert [t.finish_reason for t in turns] == [e.finish_reason for e in expected]
        for name in names:
            assert near(together.state(name), alone.state(name))


def test_turns_of_one_session_in_a_batch_follow_each_other(start: Start) -> None:
    together, alone = start(), start(store=":memory:")
    names = ["alice", "bob", "alice", "alice"]
    turns = together.batch([[user(f"{n} hi")] for n in range(4)], sessions=names, max_new_tokens=TOKENS)
    expected = [reply(alone, f"{n} hi", session=name) for n, name in enumerate(names)]
    assert [t.reply.content for t in turns] == [e.reply.content for e in expected]
    assert near(together.state("alice"), alone.state("alice"))
    assert {info.name: info.turns for info in together.sessions()} == {"alice": 3, "bob": 1}


@pytest.mark.parametrize("family", ["Gemma2", "Mistral", "Lfm2"])
def test_models_whose_caches_cannot_be_joined_take_turns(family: str, start: Start) -> None:
    model = chat_model(family)
    together, alone = start(model), start(model, store=":memory:")
    names = ["alice", "bob"]
    for number in range(2):
        texts = [f"{number} hi", f"{number} the cat is here"]
        turns = together.batch([[user(t)] for t in texts], sessions=names, max_new_tokens=TOKENS)
        expected = [reply(alone, t, session=name) for t, name in zip(texts, names, strict=True)]
        assert [t.reply.content for t in turns] == [e.reply.content for e in expected]
    assert near(together.state("bob"), alone.state("bob"))


def test_an_empty_batch_and_one_that_does_not_match(start: Start) -> None:
    engine = start()
    assert engine.batch([], sessions=[]) == []
    with pytest.raises(SessionError, match="1 conversations for 2 sessions"):
        engine.batch([[user("hi")]], sessions=["alice", "bob"])


def test_a_bad_request_in_a_batch_keeps_all_of_it_out(start: Start) -> None:
    engine = start()
    with pytest.raises(MessageError):
        engine.batch([[user("hi")], []], sessions=["alice", "bob"])
    with pytest.raises(MessageError, match="shorten or split"):
        engine.batch([[user("hi")], [user("x" * 9999)]], sessions=["alice", "bob"])
    with pytest.raises(GenerationError):
        engine.batch([[user("hi")]], sessions=["alice"], nonsense=1)
    assert engine.sessions() == []


def test_streaming_gives_the_reply_piece_by_piece_and_then_the_turn(start: Start) -> None:
    engine, other = start(), start(store=":memory:")
    *pieces, turn = engine.stream([user("hi")], session="alice", max_new_tokens=12)
    assert isinstance(turn, Turn)
    assert all(isinstance(piece, str) and piece for piece in pieces)
    assert len(pieces) > 3
    assert "".join(str(p) for p in pieces) == turn.reply.content
    assert turn.reply.content == reply(other, "hi", max_new_tokens=12).reply.content


def test_usage_adds_up(start: Start) -> None:
    engine = start()
    first = reply(engine, "the cat")
    assert (first.usage.prompt_tokens, first.usage.cached_tokens) == (len(PROMPT), 0)
    assert first.usage.completion_tokens == TOKENS
    assert first.usage.total_tokens == len(PROMPT) + TOKENS
    second = reply(engine, "hi")
    added = len(message_ids(first.reply)) + len(message_ids(user("hi")))
    assert second.usage.prompt_tokens == len(PROMPT) + added
    assert 0 < second.usage.cached_tokens < second.usage.prompt_tokens
