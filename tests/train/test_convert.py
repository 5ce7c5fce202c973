import json
from pathlib import Path

import pytest

from deltamem_agents.errors import TrainingError
from deltamem_agents.train import babi_episodes, chat_episodes, intent_texts

BABI = (
    "1 Mary went to the hall.\n2 Where is Mary?\thall\t1\n3 Mary got the milk and the apple.\n"
    "4 What is Mary carrying?\tmilk,apple\t3\n1 John is here.\n2 Is John here?\tyes\t1\n"
)
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "My cat is ill."},
    {"role": "assistant", "content": "Oh no!"},
    {"role": "user", "content": "She sneezes."},
    {"role": "assistant", "content": "See a vet."},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "You are welcome."},
]


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


def test_chats_become_replies_with_older_turns_in_memory_only(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(TALK) + "\n" + json.dumps({"messages": TALK}) + "\n")
    one, two, *again = chat_episodes(path, window=1)
    assert [one, two] == again
    assert [m.content for m in one.earlier] == ["Be kind.", "My cat is ill."]
    assert [m.content for m in one.window] == ["Oh no!"]
    assert (one.question, one.answer) == ("She sneezes.", "See a vet.")
    assert two.question == "Thanks."


def test_a_reply_that_stands_in_the_window_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps([*TALK[1:4], {"role": "assistant", "content": "Oh no!"}, *TALK[5:]]) + "\n")
    assert [e.answer for e in chat_episodes(path, window=1)] == ["You are welcome."]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.txt", "Mary went.\n", "line 1 .*expected a number"),
        ("a.txt", "1 Where?\thall\t1\n", "line 1 .*before anything was told"),
        ("a.csv", "a,b\n1,2\n", "expected text and category"),
        ("a.json", "{}", "not Rasa NLU data"),
        ("a.jsonl", '[{"role": "user"}]\n', r"line 1 .*message 0\.content"),
        ("a.jsonl", "{}\n", "line 1 is not a conversation"),
        ("a.jsonl", '[{"role": "user", "content": "x"}]\n', "no reply with messages older"),
    ],
)
def test_foreign_files_are_refused_with_the_place(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    convert = {"txt": babi_episodes, "csv": intent_texts, "json": intent_texts, "jsonl": chat_episodes}
    with pytest.raises(TrainingError, match=told):
        convert[name.partition(".")[2]](tmp_path / name)


@pytest.mark.parametrize("convert", [babi_episodes, intent_texts, chat_episodes])
def test_a_missing_folder_is_named(tmp_path: Path, convert: object) -> None:
    with pytest.raises(TrainingError, match=r"missing is nothing, expected a file or a folder"):
        convert(tmp_path / "missing")  # type: ignore[operator]
