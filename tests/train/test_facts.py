import random

import pytest

from deltamem_agents.train.episodes import EpisodeMix, draw_episode
from deltamem_agents.train.facts import ATTRIBUTES, HELD_OUT_WORDS, VALUES, Attribute, Values, made_up_word

WORDS = [f"word{chr(97 + i // 676)}{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}" for i in range(HELD_OUT_WORDS + 500)]


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda a: a.name)
def test_phrasings_of_training_and_test_are_disjoint_and_hold_the_value(attribute: Attribute) -> None:
    for train, test in zip(attribute.phrasings("train"), attribute.phrasings("test"), strict=True):
        assert train
        assert test
        assert not set(train) & set(test)
    assert all(s.count("{}") == 1 for s in (*attribute.statements, attribute.answer))
    assert not any("{}" in q for q in attribute.questions)
    assert attribute.values in VALUES


def test_no_phrasing_is_shared_between_attributes() -> None:
    phrasings = [p for a in ATTRIBUTES for p in (*a.statements, *a.questions)]
    assert len(set(phrasings)) == len(phrasings)


def test_words_held_out_for_testing_never_occur_in_training() -> None:
    values, rng = Values(WORDS), random.Random(0)
    assert not set(values.test_words) & set(values.train_words)
    mix = EpisodeMix(facts=(1, 2, 3), open_share=1.0, other_talk=2, replies=True)
    for _ in range(2000):
        episode = draw_episode(mix, values, rng, split="train")
        assert not {f.value.lower() for f in episode.facts} & set(values.test_words)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_episode_tells_what_it_asks_for_and_is_the_same_for_the_same_seed(split: str) -> None:
    values = Values(WORDS)
    mix = EpisodeMix(facts=(3,), open_share=0.5, other_talk=2, replies=True)
    one, two = (draw_episode(mix, values, random.Random(7), split=split) for _ in range(2))
    assert one == two
    told = [m.content for m in one.earlier if m.role == "user"]
    assert all(any(f.value in text for text in told) for f in one.facts)
    assert one.value in one.answer
    assert one.value in {f.value for f in one.facts}
    assert len({f.value for f in one.facts}) == len({f.attribute.name for f in one.facts}) == 3


def test_made_up_words_are_many() -> None:
    rng = random.Random(0)
    assert len({made_up_word(rng) for _ in range(1000)}) > 950
