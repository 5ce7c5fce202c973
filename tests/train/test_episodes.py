import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltamem_agents.errors import ConfigError, TrainingError
from deltamem_agents.messages import Message
from deltamem_agents.train import (
    ATTRIBUTES,
    Episode,
    EpisodeMix,
    Talk,
    Values,
    contains,
    draw_episode,
    read_episodes,
    write_episodes,
)
from deltamem_agents.train.attributes import FAMILIES, other_side
from deltamem_agents.train.episodes import UNKNOWN
from deltamem_agents.train.facts import VALUES as PEOPLE
from deltamem_agents.train.talk import SYSTEM_PROMPTS, rough_tokens

VALUES = Values(["harbor", "velvet", "saddle", "pigeon", "copper"])
EVERYTHING = EpisodeMix(
    facts=(1, 2, 4),
    kinds={"told": 1, "updated": 1, "negated": 1, "untold": 1, "listed": 1, "labels": 1},
    open_share=0.5,
    dates=0.3,
    names=0.3,
    people=0.4,
    relatives=0.3,
    rivals=0.3,
    paired=0.3,
    inside=0.3,
    old_named=0.3,
    again=0.3,
    other_talk=3,
    tools=0.3,
    idle=0.3,
    system=0.3,
    filler=(0, 60),
    replies=True,
)
GOOD = {
    "earlier": [{"role": "user", "content": "I live in Oslo."}],
    "question": "Where do I live?",
    "answer": "You live in Oslo.",
    "values": ["Oslo"],
}


LISTED = {v for kind in PEOPLE.values() for v in kind}


def drawn(split: str, seed: int, mix: EpisodeMix = EVERYTHING) -> Episode:
    return draw_episode(mix, VALUES, random.Random(seed), split=split)  # type: ignore[arg-type]


def user_texts(episode: Episode) -> list[str]:
    return [m.content for m in episode.earlier if m.role == "user"]


@given(st.integers(0, 10**6), st.sampled_from(["train", "test"]))
def test_an_episode_is_the_same_for_the_same_seed_and_survives_a_file(seed: int, split: str) -> None:
    episode = drawn(split, seed)
    assert episode == drawn(split, seed)
    assert Episode.model_validate_json(episode.model_dump_json(exclude_defaults=True)) == episode


@given(st.integers(0, 10**6), st.sampled_from(["train", "test"]))
def test_what_is_asked_for_was_told_and_what_was_not_is_answered_so(seed: int, split: str) -> None:
    episode = drawn(split, seed)
    facts = [t for i, t in enumerate(m.content for m in episode.earlier) if i not in episode.talk]
    if UNKNOWN in episode.answer:
        assert episode.values == (UNKNOWN,)
    else:
        assert all(any(contains(text, value) for text in facts) for value in episode.values)
    assert all(contains(episode.answer, v) for v in episode.values)
    assert not any(contains(episode.answer, v) for v in episode.stale)
    assert all(any(contains(text, value) for text in facts) for values in episode.told for value in values)
    if episode.tags[0] in ("told", "updated", "listed") and UNKNOWN not in episode.values:
        assert set(episode.values) <= {value for values in episode.told for value in values}
    if episode.tags[0] == "updated":
        assert (*episode.stale, *episode.values) in episode.told


def test_a_share_of_questions_comes_under_a_system_prompt_of_its_own() -> None:
    mix = EVERYTHING.model_copy(update={"system": 0.5, "tools": 0.0})
    drawn_from = {split: [drawn(split, seed, mix) for seed in range(60)] for split in ("train", "test")}
    for split, episodes in drawn_from.items():
        prompts = {m.content for e in episodes for m in e.window}
        assert prompts <= set(SYSTEM_PROMPTS[split])  # type: ignore[index]
        assert 10 < sum(bool(e.window) for e in episodes) < 50
        assert all(e.prompt[0].role == "system" for e in episodes if e.window)
    assert not set(SYSTEM_PROMPTS["train"]) & set(SYSTEM_PROMPTS["test"])


@given(st.integers(0, 10**6), st.sampled_from(["train", "test"]), st.booleans())
def test_tools_results_are_talk_and_follow_their_calls(seed: int, split: str, replies: bool) -> None:
    episode = drawn(split, seed, EpisodeMix(facts=(2,), other_talk=4, tools=0.8, replies=replies))
    for number, message in enumerate(episode.earlier):
        if message.role == "tool":
            assert {number, number - 1} <= set(episode.talk)
            before = episode.earlier[number - 1]
            assert [c.id for c in before.tool_calls] == ([message.tool_call_id] if replies else [])
    assert replies or all(m.role != "assistant" for m in episode.earlier)


def test_prompts_that_describe_tools_come_where_several_questions_share_them() -> None:
    mix = EpisodeMix(facts=(4,), questions=4, system=1.0, tools=0.5)
    found = {s: [drawn(s, seed, mix) for seed in range(40)] for s in ("train", "test")}
    named = {s: {n for e in found[s] for n in re.findall(r'"name": ?"(\w+)"', e.window[0].content)} for s in found}
    assert all(named.values())
    assert not named["train"] & named["test"]
    alone = [drawn("train", seed, mix.model_copy(update={"questions": 1})) for seed in range(40)]
    assert {e.window[0].content for e in alone} <= set(SYSTEM_PROMPTS["train"])


def test_a_system_prompt_never_shows_what_is_asked_for() -> None:
    shown = Values(re.findall(r"[a-z]{5,}", " ".join(SYSTEM_PROMPTS["train"]).lower()))
    mix = EpisodeMix(open_share=1.0, made_up=0.0, system=1.0)
    episodes = [draw_episode(mix, shown, random.Random(seed), split="train") for seed in range(300)]
    assert 0 < sum(not e.window for e in episodes) < 100


def test_nothing_was_told_in_a_share_of_episodes_without_an_answer() -> None:
    episodes = [drawn("train", seed, EpisodeMix(kinds={"untold": 1}, facts=(2,), idle=0.5)) for seed in range(60)]
    told = [len(e.earlier) - len(e.talk) for e in episodes]
    assert set(told) == {0, 2}
    assert 15 < told.count(0) < 45
    assert all(contains(e.answer, UNKNOWN) for e in episodes)


def test_a_share_of_facts_is_about_what_somebody_is_called() -> None:
    mix = EpisodeMix(facts=(6,), names=1.0, kinds={"untold": 1})
    asked = [drawn("train", seed, mix).tags[-1] for seed in range(60)]
    called = {a.name for a in ATTRIBUTES if a.values in ("person", "pet", "surname")}
    assert {"name", "dog", "sister", "boss"} < called
    assert all(tag in called for tag in asked)


def test_a_share_of_episodes_has_facts_that_are_easily_taken_for_one_another() -> None:
    def one_family(share: float) -> int:
        found = 0
        for seed in range(60):
            episode = drawn("train", seed, EpisodeMix(facts=(4,), questions=4, alike=share))
            asked = {e.question for e in (*episode.exchanges, episode)}
            assert len(asked) == 4
            found += any(asked <= {q for a in family for q in a.train.questions} for family in FAMILIES.values())
        return found

    assert one_family(0.0) < 10 < one_family(0.5) < one_family(1.0)
    assert one_family(1.0) > 35


@given(st.integers(0, 10**6))
def test_questions_on_the_way_are_of_other_facts_and_answered_rightly(seed: int) -> None:
    kinds = {"told": 3, "updated": 1, "untold": 1}
    mix = EVERYTHING.model_copy(update={"questions": 3, "facts": (4,), "kinds": kinds, "open_share": 0.0})
    episode = drawn("train", seed, mix)
    texts = [m.content for i, m in enumerate(episode.earlier) if i not in episode.talk]
    assert len({e.question for e in episode.exchanges} | {episode.question}) == len(episode.exchanges) + 1
    for exchange in episode.exchanges:
        known = any(contains(exchange.answer, value) and any(contains(t, value) for t in texts) for value in LISTED)
        assert known or UNKNOWN in exchange.answer or any(c.isdigit() for c in exchange.answer)


@given(st.integers(0, 10**6), st.sampled_from(["train", "test"]))
def test_where_all_of_a_few_values_are_taken_a_made_up_word_is_drawn(seed: int, split: str) -> None:
    sizes = PEOPLE["size"]
    found = VALUES.other("size", sizes, random.Random(seed), split=split, mix=EVERYTHING._values)  # type: ignore[arg-type]
    assert found
    assert not any(contains(found, size) or contains(size, found) for size in sizes)


@given(st.integers(0, 10**6), st.sampled_from(["train", "test"]))
def test_the_new_value_is_told_after_the_old_one(seed: int, split: str) -> None:
    episode = drawn(split, seed, EpisodeMix(kinds={"updated": 1}, facts=(1, 2, 3), open_share=0.5, people=0.3))
    texts = user_texts(episode)
    (old,) = episode.stale
    first = next(i for i, t in enumerate(texts) if contains(t, old))
    assert any(contains(t, episode.value) for t in texts[first + 1 :])


WORDS = sorted({word for attribute in ATTRIBUTES for word in attribute.words if len(word) > 4})
"""As an open vocabulary the worst there is: every word is one of a phrasing."""


@pytest.mark.parametrize("count", [1000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_no_draw_asks_for_what_its_questions_or_other_answers_show(count: int) -> None:
    mix = EVERYTHING.model_copy(update={"questions": 3, "facts": (1, 2, 4, 8), "filler": (0,)})
    for values in (VALUES, Values([*WORDS, "harbor", "velvet", "works"])):
        for seed in range(count // 2):
            split = "test" if seed % 3 == 0 else "train"
            episode = draw_episode(mix, values, random.Random(seed), split=split)  # type: ignore[arg-type]
            for value in () if "labels" in episode.tags else (*episode.values, *episode.stale):
                texts = (episode.question, *(t for e in episode.exchanges for t in (e.question, e.answer)))
                assert value == UNKNOWN or not any(contains(text, value) for text in texts), (split, seed, value)


def test_everything_that_is_known_is_told_in_the_order_it_was_told() -> None:
    mix = EpisodeMix(kinds={"listed": 1}, facts=(4,), people=1.0, dates=0.2)
    for seed in range(40):
        episode = drawn("train", seed, mix)
        told = [text for i, text in enumerate(user_texts(episode)) if i not in episode.talk]
        assert len(episode.values) == 4
        assert all(contains(text, value) for text, value in zip(told, episode.values, strict=True))
        places = [episode.answer.index(value) for value in episode.values]
        assert places == sorted(places)
        assert not contains(episode.answer, "my")
    empty = drawn("test", 1, mix.model_copy(update={"idle": 1.0}))
    assert (empty.answer, empty.values) == ("I don't know anything about you yet.", (UNKNOWN,))


def test_two_facts_may_share_a_sentence_and_a_message_with_other_talk() -> None:
    one = EpisodeMix(facts=(2,), paired=1.0)
    for seed in range(30):
        (text,) = user_texts(drawn("train", seed, one))
        assert not re.search(r"(?<!Dr)(?<!Mr)(?<!Mrs)(?<!Ms)\. [A-Z]", text)
    inside = [user_texts(drawn("train", seed, EpisodeMix(inside=1.0)))[0] for seed in range(30)]
    assert sum(len(re.findall(r"[.!?]", text)) > 1 for text in inside) > 25


def test_an_update_may_name_the_old_value_and_come_twice() -> None:
    mix = EpisodeMix(kinds={"updated": 1}, facts=(2,), old_named=1.0, again=1.0)
    for seed in range(30):
        episode = drawn("train", seed, mix)
        texts = user_texts(episode)
        oldest, old = episode.stale
        (first,) = [i for i, t in enumerate(texts) if contains(t, oldest) and contains(t, old)]
        (second,) = [i for i, t in enumerate(texts) if contains(t, old) and contains(t, episode.value)]
        assert first < second


def test_what_is_my_sister_to_the_user_is_your_sister_in_the_answer() -> None:
    mix = EpisodeMix(people=1.0, relatives=1.0, facts=(2,), rivals=0.5)
    mine = 0
    for seed in range(60):
        episode = drawn("train", seed, mix)
        found = re.search(r"\bmy (\w+)", episode.question, re.IGNORECASE)
        if "other person" in episode.tags and found:
            mine += 1
            assert re.search(rf"\byour {found[1]}\b", episode.answer, re.IGNORECASE)
            assert not contains(episode.answer, f"my {found[1]}")
            assert episode.answer[0].isupper() or episode.answer.startswith(episode.value)
    assert mine > 20


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("which tool you should use", "which tool I should use"),
        ("where I am going with my dog", "where you are going with your dog"),
        ("who stands in for me", "who stands in for you"),
        ("My sister", "Your sister"),
        ("which locker is mine", "which locker is yours"),
        ("what our server is called", "what your server is called"),
    ],
)
def test_the_other_side_says_you_for_me(said: str, heard: str) -> None:
    assert other_side(said) == heard


def test_questions_for_others_are_about_the_right_person() -> None:
    mix = EpisodeMix(facts=(3,), people=1.0)
    for seed in range(50):
        episode = drawn("test", seed, mix)
        told = next(t for t in user_texts(episode) if contains(t, episode.value))
        (name,) = (person for person in PEOPLE["person"] if contains(episode.question, person))
        assert contains(told, name)


@pytest.mark.parametrize("tokens", [0, 64, 1024])
def test_filler_has_the_length_that_was_asked_for(tokens: int) -> None:
    episode = drawn("test", 1, EpisodeMix(filler=(tokens,)))
    length = sum(rough_tokens(episode.earlier[i].content) for i in episode.talk)
    assert tokens <= length <= tokens + 120
    assert all(i > 0 for i in episode.talk)  # at test it stands between the fact and the question


def test_filler_comes_from_a_folder_without_held_out_words(tmp_path: Path) -> None:
    text = "The committee met on a sunny day in spring. A short one. Every automobile was sold."
    (tmp_path / "a.txt").write_text(text)
    assert Talk.from_folder(tmp_path).sentences == ("The committee met on a sunny day in spring.",)
    with pytest.raises(TrainingError, match="no sentences of other talk"):
        Talk.from_folder(tmp_path / "missing")


def test_unseen_attributes_and_too_many_facts_are_refused() -> None:
    with pytest.raises(ConfigError, match="training must never see them"):
        drawn("train", 0, EpisodeMix(attributes="unseen"))
    with pytest.raises(ConfigError, match="ask for fewer"):
        drawn("test", 0, EpisodeMix(attributes="unseen", facts=(30,)))
    with pytest.raises(ValidationError, match="weights"):
        EpisodeMix(kinds={"told": 0})


def test_a_file_of_episodes_reads_back(tmp_path: Path) -> None:
    episodes = [drawn("train", seed) for seed in range(20)]
    write_episodes(tmp_path / "sub" / "e.jsonl", episodes)
    assert read_episodes(tmp_path / "sub" / "e.jsonl") == episodes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"question": None}, r"line 2 .*question: "),
        ({"earlier": [{"role": "usr", "content": "x"}]}, r"line 2 .*earlier\.0\.role: "),
        ({"extra": 1}, r"line 2 .*extra: "),
        ({"values": ["Rome"]}, r"does not contain 'Rome'"),
        ({"window": [{"role": "user", "content": "Oslo is cold."}]}, r"window message 0 shows 'Oslo'"),
        ({"values": [], "window": [{"role": "user", "content": "> You live in Oslo. <"}]}, r"window message 0 shows"),
        ({"talk": [1]}, r"talk names message 1"),
        ({"told": [["Oslo"], ["Rex"]]}, r"told names 'Rex', which no message"),
        ({"told": [["Oslo"]], "talk": [0]}, r"told names 'Oslo', which no message"),
    ],
)
def test_a_malformed_line_is_named_with_its_field(tmp_path: Path, change: dict[str, object], told: str) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **change}) + "\n")
    with pytest.raises(TrainingError, match=told) as error:
        read_episodes(path)
    assert str(path) in str(error.value)


def test_no_json_and_no_file_are_named_too(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("\n{not json\n")
    with pytest.raises(TrainingError, match="line 2"):
        read_episodes(tmp_path / "e.jsonl")
    with pytest.raises(TrainingError, match="check the path"):
        read_episodes(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TrainingError, match="holds no episodes"):
        read_episodes(tmp_path / "empty.jsonl")


def test_a_value_is_found_on_word_boundaries_only() -> None:
    assert contains("He lives in oslo, today", "Oslo")
    assert contains("on May 14.", "May 14")
    assert not contains("Oslofjord", "Oslo")
    assert not contains("on May 145", "May 14")


def test_the_prompt_is_the_window_and_the_question() -> None:
    window = (Message(role="user", content="Hi."), Message(role="assistant", content="Hello."))
    episode = Episode.model_validate({**GOOD, "window": window})
    assert episode.prompt == (*window, Message(role="user", content="Where do I live?"))


def test_basic_attributes_are_a_few_common_ones() -> None:
    rng = random.Random(3)
    mix = EpisodeMix(attributes="basic", facts=(3,), dates=0.5)
    names = {draw_episode(mix, VALUES, rng, split=s).tags[2] for s in ("train", "test") for _ in range(200)}
    basics = {a.name for a in ATTRIBUTES if a.area == "basics"}
    assert names <= basics
    assert len(names) > 10
