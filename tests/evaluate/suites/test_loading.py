"""Each benchmark's files become conversations and questions."""

import shutil
from pathlib import Path

import pytest

from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.suites import SUITES, Suite, limited, load_suite
from deltamem_agents.evaluate.suites.facts import facts
from deltamem_agents.evaluate.suites.intents import intents
from tests.evaluate.suites.conftest import DATA


@pytest.fixture
def talks(locomo: Suite) -> dict[str, list[str]]:
    return {talk.name: [message.content for message in talk.messages] for talk in locomo.conversations}


def test_locomo_s_messages_name_speaker_day_and_photo(talks: dict[str, list[str]]) -> None:
    assert talks["conv-1"][:2] == [
        "3 May 2023, Ada: I bought a red bicycle.",
        "3 May 2023, Ben: Nice, here is my boat. [shares a photo of a boat]",
    ]
    assert talks["conv-1"][-1] == "1 July 2023, Ben: It rained all week.", "session 10 comes after session 2"


def test_locomo_s_questions(locomo: Suite) -> None:
    talk = locomo.conversations[0]
    assert [len(part) for part in talk.parts] == [3, 2, 1]
    listed, dated, likely, single, adversarial = talk.questions
    assert listed.category == "multi-hop"
    assert dated.answers == ("2023",)
    assert dated.evidence == (2, 3), "two marks in one entry"
    assert likely.answers == ("Likely yes; he has a boat",)
    assert single.evidence == (3,), "a mark that leads nowhere is left out"
    assert set(adversarial.candidates) == {"Turin", "Not mentioned in the conversation"}
    assert not adversarial.recalls
    assert "(a) " + adversarial.candidates[0] in adversarial.text


def test_babi_asks_the_last_question_of_each_story() -> None:
    suite = load_suite("babi", DATA)
    asked = [(len(talk.messages), talk.questions[0]) for talk in suite.conversations]
    assert [(count, q.answers[0], q.evidence) for count, q in asked] == [
        (2, "Barn", (1,)),
        (2, "Key, map", (0, 1)),
        (1, "Barn", (0,)),
    ]
    assert all(question.candidates == ("Attic", "Barn", "Key, map") for _, question in asked)
    assert "commas" in asked[1][1].text


def test_intents_give_new_texts_and_never_told_ones() -> None:
    suite = intents(DATA, draws=5, labels=3, examples=4, asked=3)
    for talk in suite.conversations:
        told = [message.content for message in talk.messages]
        assert len(told) == 12
        for question in talk.questions:
            text, _, _ = question.text.partition(" → ")
            assert not any(text in message for message in told)
            assert question.answers[0] in question.candidates
            assert all(told[place].endswith(f"label {question.answers[0]}") for place in question.evidence)
            assert len(question.evidence) == 4


def test_facts_count_as_told_last() -> None:
    suite = facts(DATA, draws=5, count=6, edited=2)
    for talk in suite.conversations:
        told = [message.content for message in talk.messages]
        assert len(told) == 8
        assert [question.category for question in talk.questions] == ["edited"] * 2 + ["kept"] * 4
        for question in talk.questions:
            assert len(set(question.candidates)) == 8
            subject = told[question.evidence[0]].split()[0]
            about = [message for message in told if message.split()[0] == subject]
            assert len(about) == (2 if question.category == "edited" else 1)
            assert about[-1].endswith(f" {question.answers[0]}.")
            assert "[X]" not in question.text
            assert subject in question.text


def test_memorybank_has_days_in_order_and_no_answers() -> None:
    suite = load_suite("memorybank", DATA)
    pia = suite.conversations[0]
    assert pia.name == "Pia"
    assert [message.content for message in pia.messages[:2]] == ["(2023-04-27) Hello, I am Pia.", "Hello, Pia."]
    assert [message.role for message in pia.messages] == ["user", "assistant"] * 2
    assert [question.text for question in pia.questions] == ["Which bird did I see?", "What is my name?"]
    assert all(question.answers == () for question in pia.questions)


def test_xquad_s_evidence_is_the_sentence_of_the_answer() -> None:
    mill, _ = load_suite("xquad", DATA).conversations
    assert len(mill.messages) == 3
    for question in mill.questions:
        assert question.answers[0] in mill.messages[question.evidence[0]].content


@pytest.mark.parametrize("name", sorted(SUITES))
def test_missing_data_says_where_it_is(name: str, tmp_path: Path) -> None:
    for nothing in (None, tmp_path):
        with pytest.raises(ConfigError, match=r"get .* from .*, put it into a folder called .*--data"):
            load_suite(name, nothing)


@pytest.mark.parametrize("name", ["locomo", "memorybank", "xquad", "facts", "babi"])
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    copied = tmp_path / "data"
    shutil.copytree(DATA, copied)
    for path in copied.rglob("*.*"):
        path.write_text('[{"sample_id": 1}]', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"expected .*"):
        load_suite(name, copied)


def test_an_unknown_suite() -> None:
    with pytest.raises(ConfigError, match="suite is 'ruler', expected one of babi"):
        load_suite("ruler", DATA)


def test_limits_are_a_seeded_choice_in_order() -> None:
    suite = load_suite("locomo", DATA)
    small = limited(suite, conversations=1, questions=2, seed=3)
    assert small == limited(suite, conversations=1, questions=2, seed=3)
    assert len(small.conversations) == 1
    whole = next(talk for talk in suite.conversations if talk.name == small.conversations[0].name)
    ids = [question.id for question in whole.questions]
    chosen = [ids.index(question.id) for question in small.conversations[0].questions]
    assert len(chosen) == 2
    assert chosen == sorted(chosen)
    assert len({limited(suite, questions=1, seed=s).conversations[0].questions[0].id for s in range(20)}) > 1
    assert limited(suite, conversations=9, questions=9) == suite
    with pytest.raises(ConfigError, match="questions is 0"):
        limited(suite, questions=0)
