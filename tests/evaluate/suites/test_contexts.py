"""What is visible never exceeds its budget, and is what it should be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents import DeltaMemEngine
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.engine.prompts import PromptWriter
from deltamem_agents.evaluate.suites import Conversation
from deltamem_agents.evaluate.suites.contexts import Contexts
from deltamem_agents.evaluate.suites.conversation import user
from deltamem_agents.evaluate.suites.summary import rolling_summary, summary_message
from tests.chat import byte_tokenizer, chat_model

WRITER = PromptWriter(ChatTemplate(byte_tokenizer()), chat_model().adapter.config)
WORDS = st.lists(st.sampled_from("red boat green kite old mill the and".split()), max_size=12).map(" ".join)
PARTS = st.lists(st.lists(WORDS, min_size=1, max_size=4), min_size=1, max_size=4)


def contexts(parts: list[list[str]]) -> Contexts:
    return Contexts(
        WRITER, Conversation(name="talk", parts=tuple(tuple(map(user, part)) for part in parts), questions=())
    )


@given(PARTS, WORDS, st.integers(0, 300))
def test_a_budget_is_never_exceeded(parts: list[list[str]], question: str, budget: int) -> None:
    talk = contexts(parts)
    for places in (talk.recent(budget), talk.found(question, budget)):
        shown = [talk.messages[place] for place in places]
        tokens = sum(WRITER.render(shown, (), write=False).lengths)
        assert tokens == talk.tokens(places) <= budget
        assert list(places) == sorted(set(places))


@given(PARTS, st.integers(0, 300))
def test_a_window_is_the_longest_end_that_fits(parts: list[list[str]], budget: int) -> None:
    talk = contexts(parts)
    places = talk.recent(budget)
    assert places == tuple(range(len(talk.lengths) - len(places), len(talk.lengths)))
    if len(places) < len(talk.lengths):
        assert talk.tokens(places) + talk.lengths[-len(places) - 1] > budget


def test_search_finds_what_shares_rare_words() -> None:
    talk = contexts([["the red boat", "the green kite"], ["an old mill", "the red kite", "boat boat boat boat"]])
    assert talk.found("where is the mill", 10_000) == (2,)
    assert talk.found("the green boat", talk.lengths[1]) == (1,)
    assert set(talk.found("red kite", 10_000)) == {0, 1, 3}
    assert talk.found("something else entirely", 10_000) == ()
    assert talk.found("the", 10_000) == (), "a question of stop words finds nothing"


@pytest.mark.parametrize("budget", [40, 90])
def test_a_summary_is_the_model_s_own_and_fits(engine: DeltaMemEngine, budget: int) -> None:
    talk = contexts([["the red boat is old"] * 30, ["the mill is green"] * 30])
    text = rolling_summary(engine, talk, budget=budget)
    assert text
    assert text == rolling_summary(engine, talk, budget=budget)
    assert sum(WRITER.render([summary_message(text)], (), write=False).lengths) <= budget
