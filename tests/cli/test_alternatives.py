"""The comparison with what one would use instead, on a tiny model: what is counted is what happened."""

import re
from pathlib import Path

import pytest

from deltamem_agents.bench.subject import load_subject
from deltamem_agents.cli.alternatives import FOUND, RECENT, Retrieval, compare
from deltamem_agents.engine import DeltaMemEngine
from tests.chat import byte_tokenizer, chat_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    chat_backbone(context=8192).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_histories_grow_retrieval_calls_more_often_and_the_memory_does_neither(folder: Path) -> None:
    def cells(turns: int) -> dict[str, list[str]]:
        lines = compare(turns=turns, facts=2, model=folder).splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
        return {row[0]: row[1:] for row in rows[1:]}

    short, long = cells(RECENT + 4), cells(2 * RECENT + 8)
    tokens = {name: [int(found[name][0].replace(",", "")) for found in (short, long)] for name in long}
    assert tokens["plain history"][1] > 1.5 * tokens["plain history"][0]
    assert tokens["this"][1] < 1.3 * tokens["this"][0]
    assert [long[name][2] for name in long] == ["1", "3", "1"]
    assert all(re.fullmatch(r"\d of 2", row[3]) for row in long.values())


def test_what_is_like_the_message_is_retrieved(folder: Path) -> None:
    subject = load_subject(folder, seed=0)
    with DeltaMemEngine(subject.model, subject.tokenizer, store=":memory:") as engine:
        way = Retrieval(engine)
        for text in ("aaaa aaaa", "bbbb bbbb", "cccc cccc", "dddd dddd", "eeee eeee", "ffff ffff"):
            way.say(text)
        shown = way._shown("cccc cccc")[0]["content"].splitlines()
    assert len(shown) == 1 + FOUND
    assert shown[1] == "- cccc cccc"
