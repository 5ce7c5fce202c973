"""What counts as right, as stale, and as not knowing."""

import pytest

from deltamem_agents.evaluate.judging import Verdict, judge, keeps
from deltamem_agents.messages import Message
from deltamem_agents.train import Episode
from deltamem_agents.train.episodes import UNKNOWN

EARLIER = (Message(role="user", content="Hello."),)
MOVED = Episode(
    earlier=EARLIER, question="Where do I live?", answer="You live in Oslo.", values=("Oslo",), stale=("Rome",)
)
UNTOLD = Episode(
    earlier=EARLIER, question="Where do I live?", answer="I don't know where you live.", values=(UNKNOWN,)
)
RIGHT, STALE, UNSURE, NOTHING = (
    Verdict(right=True, stale=False, unsure=False),
    Verdict(right=False, stale=True, unsure=False),
    Verdict(right=False, stale=False, unsure=True),
    Verdict(right=False, stale=False, unsure=False),
)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("You live in Oslo.", RIGHT),
        ("oslo", RIGHT),
        ("I'm not sure, but is it Oslo?", RIGHT),  # it does know
        ("You live in Oslofjord.", NOTHING),
        ("You live in Paris.", NOTHING),
        ("", NOTHING),
        ("You live in Rome.", STALE),
        ("You lived in Rome and now in Oslo.", STALE),  # it must not name both
        ("I don't know where you live.", UNSURE),
        ("I do not really know.", UNSURE),
        ("I don’t remember.", UNSURE),
        ("You have not told me.", UNSURE),
        ("I know you live in Paris.", NOTHING),
    ],
)
def test_of_what_was_told(answer: str, verdict: Verdict) -> None:
    found = judge(answer, MOVED)
    assert (found.right, found.stale, found.unsure) == (verdict.right, verdict.stale, verdict.unsure)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("I don't know where you live.", True),
        ("I have no idea.", True),
        ("You haven't told me yet.", True),
        ("You live in Oslo.", False),
        ("You know it well.", False),
        ("", False),
    ],
)
def test_of_what_was_never_told(answer: str, right: bool) -> None:
    verdict = judge(answer, UNTOLD)
    assert verdict.right == verdict.unsure == right


def test_every_value_must_be_there() -> None:
    both = MOVED.model_copy(update={"answer": "Milk, bread.", "values": ("milk", "bread"), "stale": ()})
    assert judge("Bread and milk.", both).right
    assert not judge("Milk.", both).right
    assert [judge(text, both).named for text in ("Bread and milk.", "Milk.", "Tea.")] == [1.0, 0.5, 0.0]


FRANCE = "What is the capital of France?"


@pytest.mark.parametrize(
    ("question", "plain", "answer", "kept"),
    [
        (FRANCE, "The capital of France is Paris.", "The capital of France is Paris.", True),
        (FRANCE, "The capital of France is Paris.", "Paris! It lies on the Seine.", True),
        (FRANCE, "The capital of France is Paris. It is old.", "It's paris.", True),
        (FRANCE, "The capital of France is Paris.", "The capital of France is Lyon.", False),
        (FRANCE, "The capital of France is Paris.", "Lyon. Not Paris.", False),  # another first sentence
        (FRANCE, "The capital of France is Paris.", "", False),
        ("What is 4 + 9?", "4 + 9 = 13", "13", True),
        ("What is 4 + 9?", "4 + 9 = 13", "4 + 9 = 14", False),
        ("Is it?", "It is.", "it is", True),  # nothing but common words
        ("Is it?", "It is.", "It is my dog.", False),
    ],
)
def test_an_answer_is_kept_where_it_says_what_the_frozen_model_says(
    question: str, plain: str, answer: str, kept: bool
) -> None:
    assert keeps(answer, plain, question) == kept
