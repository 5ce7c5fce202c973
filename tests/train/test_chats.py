import json
from pathlib import Path

import pytest

from deltamem_agents.errors import TrainingError
from deltamem_agents.train import chat_episodes
from deltamem_agents.train.chats import load_chats

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "My cat is ill."},
    {"role": "assistant", "content": "Oh no!"},
    {"role": "user", "content": "She sneezes."},
    {"role": "assistant", "content": "See a vet."},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "You are welcome."},
]
SHAREGPT = [
    {"from": {"system": "system", "user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in TALK
]


def talk_about(number: int) -> list[dict[str, str]]:
    told = [("user", f"My number is {number}."), ("assistant", "Noted."), ("user", "Which is it?")]
    return [{"role": role, "content": text} for role, text in (*told, ("assistant", f"It is {number}."))]


def written(path: Path, conversations: int) -> Path:
    path.write_text("".join(json.dumps(talk_about(n)) + "\n" for n in range(conversations)))
    return path


def test_chats_become_replies_with_older_turns_in_memory_only(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(TALK) + "\n" + json.dumps({"messages": TALK}) + "\n")
    one, two, *again = chat_episodes(path, window=1)
    assert [one, two] == again
    assert [m.content for m in one.earlier] == ["Be kind.", "My cat is ill."]
    assert [m.content for m in one.window] == ["Oh no!"]
    assert (one.question, one.answer) == ("She sneezes.", "See a vet.")
    assert two.question == "Thanks."


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", [TALK, TALK]),
        ("a.json", [{"messages": TALK}, {"conversations": SHAREGPT, "id": "x"}]),
        ("a.json", {"conversations": SHAREGPT}),
        ("a.json", SHAREGPT),
        ("a.jsonl", SHAREGPT),
        ("a.jsonl", {"conversations": SHAREGPT}),
    ],
)
def test_arrays_and_sharegpt_are_read_as_well(tmp_path: Path, name: str, data: object) -> None:
    indent = 2 if name == "a.json" else None
    (tmp_path / name).write_text(json.dumps(data, indent=indent))
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "a.jsonl").write_text(json.dumps(TALK))
    ours = chat_episodes(tmp_path / "ours", window=1)
    found = chat_episodes(tmp_path / name, window=1)
    assert found[: len(ours)] == ours
    assert len(found) == len(ours) * (2 if len(data) == 2 else 1)


def test_lines_under_a_json_name_are_read(tmp_path: Path) -> None:
    assert len(chat_episodes(written(tmp_path / "a.json", 3), window=1)) == 3


def test_what_a_tool_said_in_sharegpt_is_a_tools_message(tmp_path: Path) -> None:
    said = [*SHAREGPT[:2], {"from": "observation", "value": "Ill."}, *SHAREGPT[2:]]
    (tmp_path / "a.json").write_text(json.dumps(said))
    episode = chat_episodes(tmp_path / "a.json", window=0)[0]
    assert [m.role for m in episode.earlier] == ["system", "user", "tool", "assistant"]


def test_a_reply_that_stands_in_the_window_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps([*TALK[1:4], {"role": "assistant", "content": "Oh no!"}, *TALK[5:]]) + "\n")
    assert [e.answer for e in chat_episodes(path, window=1)] == ["You are welcome."]


def test_whole_conversations_are_held_out_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", 30)
    with path.open("a") as file:
        file.write(json.dumps(TALK[:3]) + "\n")  # too short
    chats = load_chats(path, window=1, held_out=0.1)
    assert chats.found == "chats.jsonl: 30 episodes in 30 of 31 conversations; 3 held out (3 episodes)"
    assert len(chats.held_out) == 3
    kept = {e.answer for episodes in chats.held_out for e in episodes}
    assert not kept & {e.answer for e in chats.train}
    assert len(chats.train) == 27
    assert load_chats(path, window=1, held_out=0.1) == chats
    everything = load_chats(path, window=1, held_out=0.0)
    assert (len(everything.train), everything.held_out) == (30, ())


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_conversations_to_hold_two_out_are_refused(tmp_path: Path, count: int) -> None:
    path = written(tmp_path / "chats.jsonl", count)
    with pytest.raises(TrainingError, match=rf"has {count} conversations? with .*expected at least 3.*held_out: 0"):
        load_chats(path, window=1, held_out=0.1)
    assert len(load_chats(path, window=1, held_out=0.0).train) == count


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.jsonl", "", "is empty: expected conversations"),
        ("a.json", " \n", "is empty: expected conversations"),
        ("a.jsonl", '[{"role": "user"}]\n', r"line 1 .*message 0\.content"),
        ("a.jsonl", '[{"from": "dog", "value": "x"}]\n', r"line 1 .*message 0\.role"),
        ("a.jsonl", '[{"from": ["dog"], "value": "x"}]\n', r"line 1 .*message 0\.role"),
        ("a.jsonl", "\n{}\n", "line 2 is not a conversation .*no list of messages"),
        ("a.jsonl", "[1]\n", "line 1 is not a conversation .*message 0"),
        ("a.jsonl", "[\n", r"line 1 is not JSON .*or a \.json file"),
        ("a.json", "[\n[}", "a.json is not JSON"),
        ("a.json", "[[], 3]", "conversation 2 is not a conversation"),
        ("a.jsonl", '[{"role": "user", "content": "x"}]\n', "1 conversation, and no reply with messages older"),
    ],
)
def test_foreign_files_are_refused_with_the_place(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TrainingError, match=told):
        chat_episodes(tmp_path / name)
