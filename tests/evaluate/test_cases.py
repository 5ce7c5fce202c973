"""What is told and asked, and whose memory stands in."""

import csv
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.errors import TrainingError
from deltamem_agents.evaluate.cases import label_texts, live_case, partners
from deltamem_agents.evaluate.rows import ROWS
from deltamem_agents.messages import Message
from deltamem_agents.train import Episode, EpisodeMix, Values, contains, draw_episode
from deltamem_agents.train.attributes import ATTRIBUTES
from deltamem_agents.train.episodes import UNKNOWN

VALUES = Values(["harbor", "velvet", "saddle"])
MIXES = [mix for row in ROWS.values() for mix in row.mixes]


@given(st.sampled_from(MIXES), st.integers(0, 10**6), st.integers(2, 12))
def test_nobody_swaps_with_itself_or_with_one_that_knows(mix: EpisodeMix, seed: int, count: int) -> None:
    rng = random.Random(seed)
    episodes = [draw_episode(mix, VALUES, rng, split="test") for _ in range(count)]
    for number, (episode, partner) in enumerate(zip(episodes, partners(episodes), strict=True)):
        assert partner != number
        if partner is None or episode.value == UNKNOWN:
            continue
        assert episodes[partner].value.lower() != episode.value.lower()
        if "labels" not in episode.tags:
            assert not any(contains(m.content, episode.value) for m in episodes[partner].earlier)


def _told(value: str, *also: str) -> Episode:
    texts = (f"My city is {value}.", *also)
    earlier = tuple(Message(role="user", content=text) for text in texts)
    return Episode(earlier=earlier, question="Which city?", answer=value, values=(value,))


def test_the_next_one_that_does_not_know() -> None:
    episodes = [_told("Oslo"), _told("oslo"), _told("Rome", "My dog is called Oslo."), _told("Paris")]
    assert partners(episodes) == [3, 3, 3, 0]
    assert partners(episodes[:2]) == [None, None]


def test_what_was_never_told_swaps_with_anybody() -> None:
    untold = _told("Oslo").model_copy(update={"answer": "I don't know.", "values": (UNKNOWN,)})
    assert partners([untold, untold, untold]) == [1, 2, 0]


@given(st.integers(0, 10**6))
def test_ten_exchanges_two_of_them_wrong(seed: int) -> None:
    case = live_case(VALUES, random.Random(seed))
    told = " ".join(m.content for m in case.episode.earlier)
    given_replies = [e.reply for e in case.later if e.reply is not None]
    assert (len(case.episode.earlier), len(case.later), len(given_replies)) == (4, 10, 2)
    assert contains(told, case.episode.value)
    assert not any(contains(reply, case.episode.value) for reply in given_replies)
    assert sum(contains(reply, case.episode.stale[0]) for reply in given_replies) == 1
    assert not contains(told, case.episode.stale[0])
    names = {a.name for a in ATTRIBUTES for e in case.later if e.question in a.test.questions}
    assert len(names) == 6, "the four facts, and two that were never told"


def _intents(path: Path, kinds: int) -> None:
    path.mkdir(parents=True)
    with (path / "train.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "category"])
        rows.writerows([f"Text {n} about topic {k}", f"topic {k:02}"] for k in range(kinds) for n in range(6))


@pytest.mark.parametrize("inside", ["train/banking77", "banking77", "."])
def test_label_maps_from_a_folder(tmp_path: Path, inside: str) -> None:
    _intents(tmp_path / "data" / inside, 32)
    assert len(label_texts(tmp_path / "data").kinds["test"]) == 8


def test_no_folder_and_too_few_kinds(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing"):
        label_texts(tmp_path / "nowhere")
    _intents(tmp_path / "few", 5)
    with pytest.raises(TrainingError, match="holds 5 kinds of texts, expected 8"):
        label_texts(tmp_path / "few")
