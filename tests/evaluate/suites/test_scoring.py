"""Scores as the benchmarks define them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.evaluate.suites import Question, Suite
from deltamem_agents.evaluate.suites.locomo import official_score
from deltamem_agents.evaluate.suites.scoring import exact_match, holds, list_f1, short_answer, stems, token_f1, words

TEXTS = st.text(alphabet=st.sampled_from("the cat, a dog. and running runs"), max_size=40)


@given(TEXTS, TEXTS)
def test_f1_is_a_symmetric_share_and_one_for_the_same_words(one: str, other: str) -> None:
    for by in (words, stems):
        assert 0 <= token_f1(one, other, by=by) <= 1
        assert token_f1(one, other, by=by) == token_f1(other, one, by=by)
        assert token_f1(one, one, by=by) == 1
        assert 0 <= list_f1(one, other, by=by) <= 1
        if token_f1(one, other, by=by) == 0:
            assert not set(by(one)) & set(by(other))
    assert exact_match(one, other) <= token_f1(one, other)


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("The cat!", "a cat", 1.0),
        ("big cat", "cat", 2 / 3),
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("", "the", 1.0),
        ("", "cat", 0.0),
    ],
)
def test_squad_f1(answer: str, gold: str, expected: float) -> None:
    assert token_f1(answer, gold) == pytest.approx(expected)


def test_locomo_s_words_are_porter_stems() -> None:
    assert stems("The painted ponies, and running") == stems("paint pony run")
    assert token_f1("ponies", "pony", by=stems) == 1
    assert token_f1("ponies", "pony") == 0


def test_a_list_takes_the_best_of_each() -> None:
    assert list_f1("cakes, bread", "bread, cakes") == 1
    assert list_f1("bread", "bread, cakes") == 0.5
    assert list_f1("bread, cakes, tea", "bread") == 1, "as its authors score: what is too much costs nothing"


def test_an_answer_holds_all_parts_as_words() -> None:
    assert holds("She has a key and the map.", "key, map")
    assert not holds("She has a key.", "key, map")
    assert not holds("a monkey", "key")


def test_the_right_answer_that_fits_best_counts() -> None:
    assert short_answer("Ruth Berg", ["Berg", "Ruth Berg"])["exact"] == 1
    assert short_answer("anything", []) == {"f1": 0.0, "exact": 0.0, "holds": 0.0}


def test_locomo_by_category(locomo: Suite) -> None:
    listed, dated, likely, single, adversarial = locomo.conversations[0].questions

    def f1(answer: str, question: Question) -> float:
        return official_score(answer, question)["f1"]

    assert f1("Bread", listed) == 0.5
    assert f1("in 2023", dated) == pytest.approx(2 / 3)
    assert f1("likely yes", likely) == 1, "what follows the semicolon explains"
    assert f1("Turin", single) == 1
    right = "ab"[adversarial.candidates.index("Not mentioned in the conversation")]
    wrong = "ba"["ab".index(right)]
    assert f1(f"({right})", adversarial) == f1(f"{right}) it is", adversarial) == 1
    assert f1(f"({wrong}) Turin", adversarial) == f1("Turin", adversarial) == 0
    assert f1("This is not mentioned.", adversarial) == 1
