"""Composed small talk: many sentences, none of which tells what somebody asks for or holds what is kept for testing."""

import random

from deltamem_agents.train.attributes import Split
from deltamem_agents.train.everyday import everyday
from deltamem_agents.train.facts import holds_held_out_word
from deltamem_agents.train.phrases import phrases
from deltamem_agents.train.talk import small_talk


def test_everyday_sentences_are_many_whole_and_hold_no_held_out_word() -> None:
    rng = random.Random(0)
    drawn = [everyday(rng) for _ in range(4000)]
    assert len(set(drawn)) > 3000
    for text in set(drawn):
        assert text[0].isupper()
        assert text[-1] in ".?!"
        assert "{" not in text
        assert not holds_held_out_word(text)


def test_they_are_talk_in_training_and_never_at_test() -> None:
    rng = random.Random(1)
    assert {small_talk(rng, "test") for _ in range(500)} <= _listed("test")
    known = _listed("train")
    composed = sum(small_talk(rng, "train") not in known for _ in range(500))
    assert 150 < composed < 300


def _listed(split: Split) -> set[str]:
    return {text for kind in ("small_talk", "general_questions") for ts in phrases(kind)[split].values() for text in ts}
