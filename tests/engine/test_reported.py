"""Situations that users of other projects have reported, beyond the kinds that have files of their own."""

import copy

import pytest

from deltamem_agents import DeltaMemEngine, Message
from tests.backbone.families import GEMMA_2, MISTRAL_1, QWEN_2, tokenizer
from tests.chat import byte_tokenizer, chat_model

SUPERVISOR = Message(role="system", content="Who should act next?")


def user(text: str) -> Message:
    return Message(role="user", content=text)


@pytest.mark.parametrize("template", [None, GEMMA_2, MISTRAL_1, QWEN_2])
@pytest.mark.parametrize("session", ["alice", None])
def test_instructions_behind_and_between_the_history(template: str | None, session: str | None) -> None:
    """As LangGraph's supervisors put them: langgraph#2441, and several of them, far from each other."""
    tokens = copy.deepcopy(byte_tokenizer())
    tokens.chat_template = template or tokens.chat_template
    with DeltaMemEngine(chat_model(absorb_roles=("user",)), tokens, store=":memory:") as engine:
        first = Message(role="system", content="You manage workers.")
        history = [first, user("the cat"), SUPERVISOR]
        turn = engine.generate(history, session=session, max_new_tokens=4)
        alone = engine.generate(history[:2], max_new_tokens=4)
        assert turn.usage.prompt_tokens > alone.usage.prompt_tokens + 10
        engine.generate([*history, turn.reply, user("so"), SUPERVISOR], session=session, max_new_tokens=4)
        if session is None:
            return
        line = engine.store.line(engine.session(session).info.head or "")
        assert [e.role for t in line for e in t.entries] == ["user", "assistant"] * 2
        assert [e.written for t in line for e in t.entries] == [True, False] * 2


@pytest.mark.parametrize("template", [GEMMA_2, MISTRAL_1])
def test_a_prompt_begins_with_one_token_that_begins_it(template: str) -> None:
    """OpenRLHF#393, sglang#888: applying a template and tokenising in two steps adds a second one."""
    tokens = copy.deepcopy(tokenizer("bytes"))
    tokens.chat_template = template
    with DeltaMemEngine(chat_model(), tokens, store=":memory:") as engine:
        ids = engine._writer.render((), [user("hi")], write=False, opened=True).ids
    assert ids.count(tokens.bos_token_id) == 1
    assert ids[0] == tokens.bos_token_id


def test_content_parts_are_counted(engine: DeltaMemEngine) -> None:
    """langchainjs#8336: counters that only know strings."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "the cat"}, {"type": "text", "text": "is as"}]}]
    assert engine.count_tokens(parts) == engine.count_tokens([user("the cat\nis as")])
