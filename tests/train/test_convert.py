import json
from pathlib import Path

import pytest

from deltamem_agents.errors import TrainingError
from deltamem_agents.train import babi_episodes, chat_episodes, intent_texts

BABI = (
    "1 Mary went to the hall.\n2 Where is Mary?\thall\t1\n3 Mary got the milk and the apple.\n"
    "4 What is Mary carrying?\tmilk,apple\t3\n1 John is here.\n2 Is John here?\tyes\t1\n"
)


def test_babi_questions_are_asked_of_the_story_so_far(tmp_path: Path) -> None:
    (tmp_path / "qa1_x_train.txt").write_text(BABI)
    hall, carried, john = babi_episodes(tmp_path)
    assert [m.content for m in carried.earlier] == ["Mary went to the hall.", "Mary got the milk and the apple."]
    assert (hall.question, hall.answer, hall.values) == ("Where is Mary?", "Hall.", ("hall",))
    assert (carried.answer, carried.values) == ("Milk, apple.", ("milk", "apple"))
    assert [m.content for m in john.earlier] == ["John is here."]
    assert john.tags == ("babi", "qa1")


def test_intents_come_from_csv_and_rasa_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,category\n"Where is\nmy card?",card\nHi,greet\n')
    rasa = {"rasa_nlu_data": {"common_examples": [{"text": "dim it", "intent": "light", "entities": []}]}}
    (tmp_path / "b.json").write_text(json.dumps(rasa))
    assert intent_texts(tmp_path) == {"card": ["Where is my card?"], "greet": ["Hi"], "light": ["dim it"]}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.txt", "Mary went.\n", "line 1 .*expected a number"),
        ("a.txt", "1 Where?\thall\t1\n", "line 1 .*before anything was told"),
        ("a.csv", "a,b\n1,2\n", "expected text and category"),
        ("a.json", "{}", "not Rasa NLU data"),
    ],
)
def test_foreign_files_are_refused_with_the_place(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    convert = {"txt": babi_episodes, "csv": intent_texts, "json": intent_texts}
    with pytest.raises(TrainingError, match=told):
        convert[name.partition(".")[2]](tmp_path / name)


@pytest.mark.parametrize("convert", [babi_episodes, intent_texts, chat_episodes])
def test_a_missing_folder_is_named(tmp_path: Path, convert: object) -> None:
    with pytest.raises(TrainingError, match=r"missing is nothing, expected a file or a folder"):
        convert(tmp_path / "missing")  # type: ignore[operator]
