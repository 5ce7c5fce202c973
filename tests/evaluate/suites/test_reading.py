"""Likelihoods and answers are the model's own, whatever is shared between prompts."""

import pytest
import torch
import torch.nn.functional as F

from deltamem_agents import DeltaMemEngine, Message
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.engine.prompts import PromptWriter
from deltamem_agents.evaluate.suites.conversation import user
from deltamem_agents.evaluate.suites.reading import Asking, Reader
from deltamem_agents.state import MemoryState
from tests.chat import byte_tokenizer, chat_backbone, chat_model

TEXTS = ("Oslo", "a red kite", "x")
SHOWN = (user("I live in Oslo."), user("My dog is old."))
QUESTIONS = (user("Where do I live?"), user("Who is old?"), user("Why?"))


def reader(engine: DeltaMemEngine) -> Reader:
    writer = PromptWriter(ChatTemplate(engine.tokenizer), engine.model.adapter.config)
    return Reader(engine, writer, answer_tokens=8)


@pytest.fixture
def state(engine: DeltaMemEngine) -> MemoryState:
    for text in ("I live in Turin.", "It is warm."):
        engine.absorb([user(text)], session="a")
    return engine.state("a")


def read(engine: DeltaMemEngine, *askings: Asking) -> list[tuple[str, list[float], int]]:
    [found] = engine.on_session("a", lambda: reader(engine).read([askings]))
    return [(reading.answer, list(reading.nats), reading.prompt_tokens) for reading in found]


def bare_nats(messages: tuple[Message, ...], text: str) -> float:
    """By the backbone alone, in one forward."""
    tokenizer = byte_tokenizer()
    plain = [{"role": m.role, "content": m.content} for m in messages]
    prompt = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    ids, answer = (tokenizer.encode(t, add_special_tokens=False) for t in (str(prompt), text))
    with torch.no_grad():
        logits = chat_backbone()(torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 : -1]
    return F.cross_entropy(logits, torch.tensor(answer)).item()


def test_without_a_memory_it_is_the_frozen_model(engine: DeltaMemEngine) -> None:
    found = read(engine, *(Asking(SHOWN, (question,), None, TEXTS) for question in QUESTIONS))
    for (answer, nats, tokens), question in zip(found, QUESTIONS, strict=True):
        assert nats == pytest.approx([bare_nats((*SHOWN, question), text) for text in TEXTS], abs=1e-4)
        turn = engine.generate([*SHOWN, question], max_new_tokens=8)
        assert answer == turn.reply.content
        assert tokens == turn.usage.prompt_tokens


def test_with_a_memory_it_is_the_engine_s_answer(engine: DeltaMemEngine, state: MemoryState) -> None:
    found = read(engine, *(Asking((), (question,), state, TEXTS) for question in QUESTIONS))
    for (answer, _, tokens), question in zip(found, QUESTIONS, strict=True):
        turn = engine.generate([question], session="a", memory="read", max_new_tokens=8)
        assert answer == turn.reply.content
        assert tokens == turn.usage.prompt_tokens


def test_a_window_is_the_engine_s_own(engine: DeltaMemEngine, state: MemoryState) -> None:
    for message in SHOWN:  # the window moves in blocks: what comes before it is as long as it is
        engine.absorb([message], session="a")
    turn = engine.generate([QUESTIONS[0]], session="a", memory="read", recent_messages=2, max_new_tokens=8)
    [(answer, _, tokens)] = read(engine, Asking((), (*SHOWN, QUESTIONS[0]), state, TEXTS))
    assert (answer, tokens) == (turn.reply.content, turn.usage.prompt_tokens)


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"absorb_roles": ("user", "assistant")}, {"write_granularity": "message_mean"}]
)
def test_together_is_as_alone(memory: bool, options: dict[str, object]) -> None:
    with DeltaMemEngine(chat_model(**options), byte_tokenizer(), store=":memory:", recent_messages=0) as engine:
        engine.absorb([user("I live in Turin.")], session="a")
        given = engine.state("a") if memory else None
        askings = [
            Asking(shown, (*spoken, question), given, texts)
            for question, texts in zip(QUESTIONS, (TEXTS, TEXTS[:1], TEXTS[2:]), strict=True)
            for shown, spoken in ((SHOWN, ()), ((), SHOWN))
        ]
        for group in (askings[::2], askings[1::2], askings):
            for together, asking in zip(read(engine, *group), group, strict=True):
                [(answer, nats, tokens)] = read(engine, asking)
                assert together[0] == answer
                assert together[1] == pytest.approx(nats, abs=1e-4)
                assert together[2] == tokens
        swapped = Asking((), (QUESTIONS[0],), engine.model.zero_state(), TEXTS)
        if memory:
            own = Asking((), (QUESTIONS[0],), given, TEXTS)
            assert read(engine, own)[0][1] != pytest.approx(read(engine, swapped)[0][1], abs=1e-3)
            assert read(engine, own, swapped)[1][1] == pytest.approx(read(engine, swapped)[0][1], abs=1e-4)
