"""What is kept for testing never occurs in training: values, their subwords, phrasings, attributes, kinds of texts."""

import random
import re

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from deltamem_agents.backbone.bundled import bundled_path
from deltamem_agents.train import ATTRIBUTES, HELD_OUT_ATTRIBUTES, EpisodeMix, LabelTexts, Values, draw_episode
from deltamem_agents.train.attributes import NOT_TOLD
from deltamem_agents.train.composed import COMPOSED
from deltamem_agents.train.facts import VALUES, ValueMix, held_out_words, holds_held_out_word, training_vocabulary
from tests.chat import byte_tokenizer

MIX = EpisodeMix(
    facts=(1, 2, 4, 8),
    kinds={"told": 1, "updated": 1, "negated": 1, "untold": 1, "listed": 1, "labels": 1},
    open_share=0.9,
    made_up=0.4,
    dates=0.3,
    names=0.2,
    alike=0.3,
    people=0.3,
    relatives=0.3,
    rivals=0.2,
    paired=0.3,
    inside=0.3,
    old_named=0.3,
    again=0.2,
    other_talk=3,
    tools=0.3,
    system=0.5,
    filler=(0, 0, 200),
    replies=True,
    questions=3,
)
KINDS = [kind for kind in COMPOSED if kind != "age"]
OPEN = {"word": ValueMix(1.0, 0.0), "made up": ValueMix(1.0, 1.0)}


@pytest.fixture(scope="module", params=["bundled", "bytes"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return byte_tokenizer() if request.param == "bytes" else AutoTokenizer.from_pretrained(bundled_path())


@pytest.fixture(scope="module")
def values() -> Values:
    return Values(training_vocabulary(AutoTokenizer.from_pretrained(bundled_path())))


@pytest.fixture(scope="module")
def trained_texts(values: Values) -> list[str]:
    rng = random.Random(0)
    episodes = [draw_episode(MIX, values, rng, split="train") for _ in range(2000)]
    return sorted({m.content for e in episodes for m in (*e.earlier, *e.prompt)} | {e.answer for e in episodes})


@pytest.fixture(scope="module")
def tested_values(values: Values) -> list[str]:
    rng = random.Random(1)
    open_values = [values.draw("word", rng, split="test", mix=mix) for mix in OPEN.values() for _ in range(150)]
    composed = [values.draw(kind, rng, split="test", mix=ValueMix()) for kind in KINDS for _ in range(60)]
    return sorted({*held_out_words(), *open_values, *composed})


def test_test_values_never_occur_in_training_in_any_case(trained_texts: list[str], tested_values: list[str]) -> None:
    trained = "\n".join(trained_texts).lower()
    assert len(tested_values) > 2000
    assert not [v for v in tested_values if v.lower() in trained]


def test_subwords_of_test_values_never_follow_each_other_in_training(
    trained_texts: list[str], tested_values: list[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    def tokens(text: str) -> str:
        return "".join(chr(0x100 + i) for i in tokenizer.encode(text, add_special_tokens=False))  # a letter a token

    trained = "\n".join(tokens(t) for t in trained_texts)
    for value in tested_values:
        for variant in (value, f" {value}", value.capitalize(), f" {value.capitalize()}"):
            assert tokens(variant) not in trained, variant


def test_the_words_that_training_draws_from_hold_no_held_out_word(values: Values) -> None:
    assert len(values.train_words) > 10_000
    assert not [w for w in values.train_words if any(held in w for held in held_out_words())]
    assert holds_held_out_word("Two Automobiles!")
    assert not holds_held_out_word("two cars")


def test_held_out_phrasings_never_occur_in_training(trained_texts: list[str]) -> None:
    trained = "\n".join(trained_texts)
    for attribute in (*ATTRIBUTES, *HELD_OUT_ATTRIBUTES):
        for phrasings in filter(None, (attribute.test, attribute.test_about)):
            for template in (*phrasings.statements, *phrasings.questions, *phrasings.updates, *phrasings.negations):
                if max(re.split(r"{\w*}", template), key=len) not in trained:
                    continue
                pattern = re.escape(template).replace(r"\{\}", ".+").replace(r"\{who\}", r"\w+")
                assert not re.search(rf"^{pattern}$", trained, re.MULTILINE), template


def test_held_out_attributes_never_occur_in_training(trained_texts: list[str]) -> None:
    assert len(HELD_OUT_ATTRIBUTES) >= 25
    trained = "\n".join(trained_texts)
    for attribute in HELD_OUT_ATTRIBUTES:
        assert not re.search(rf"\bmy {attribute.name}\b", trained, re.IGNORECASE), attribute.name
        assert not attribute.train.statements
        assert not attribute.train.questions


def test_attributes_are_many_and_of_many_parts_of_life() -> None:
    assert len({a.name for a in ATTRIBUTES}) == len(ATTRIBUTES) >= 150
    assert len({a.area for a in ATTRIBUTES}) >= 12
    assert all(a.values in VALUES or a.values in COMPOSED for a in (*ATTRIBUTES, *HELD_OUT_ATTRIBUTES))
    assert not {a.name for a in ATTRIBUTES} & {a.name for a in HELD_OUT_ATTRIBUTES}


def test_phrasings_are_many_distinct_and_complete() -> None:
    said: list[str] = []
    for attribute in ATTRIBUTES:
        assert len(attribute.train.statements) >= 7
        assert len(attribute.train.questions) >= 5
        for split in (attribute.train, attribute.test, attribute.train_about, attribute.test_about):
            if split is not None:
                told = (*split.statements, *split.updates, *split.negations, split.answer)
                assert all(text.count("{}") == 1 for text in told)
                assert not any("{}" in q for q in (*split.questions, split.unknown))
                assert split.unknown.endswith(NOT_TOLD)
                assert split.answer.startswith(split.unknown.removesuffix(NOT_TOLD).removesuffix("… "))
                assert not re.search(r"\b(?:my|mine|me|am|our|we)\b", split.answer, re.IGNORECASE)
                said += [*split.statements, *split.questions, *split.updates, *split.negations]
        for about in filter(None, (attribute.train_about, attribute.test_about)):
            assert all("{who}" in text for text in (*about.statements, *about.questions, about.answer, about.unknown))
    assert len(set(said)) == len(said)


def test_main_attributes_have_a_dozen_statements_and_eight_questions() -> None:
    main = [a for a in ATTRIBUTES if len(a.train.statements) >= 12 and len(a.train.questions) >= 8]
    assert len(main) >= 12


def test_kinds_of_labelled_texts_are_kept_apart() -> None:
    texts = LabelTexts()
    assert not set(texts.kinds["train"]) & set(texts.kinds["test"])
    assert texts.kinds["test"]
    rng = random.Random(0)
    for _ in range(50):
        drawn = texts.draw(rng, split="train", labels=4, examples=2)
        assert len(drawn.shown) == 8
        assert not any(drawn.question == shown for shown in drawn.shown)
        assert any(drawn.label in shown for shown in drawn.shown)
