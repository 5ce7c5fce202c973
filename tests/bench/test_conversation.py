"""The benchmark of long conversations, on a tiny model. How long anything takes is no test's business."""

import json
import statistics
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltamem_agents import ConfigError
from deltamem_agents.bench import Conversation, ConversationReport, TurnCost, run_conversation
from deltamem_agents.bench.questions import Asked, draw_facts
from deltamem_agents.cli import app
from deltamem_agents.train import ATTRIBUTES, contains
from tests.chat import byte_tokenizer, chat_backbone

TURNS, RECENT, FACTS = 26, 2, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    chat_backbone(context=1024).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> ConversationReport:
    return run_conversation(turns=TURNS, recent=RECENT, keep=4, facts=FACTS, seed=3, model=folder)


def test_the_window_stays_and_the_history_grows_until_it_is_full(report: ConversationReport) -> None:
    windowed, full = report.conversations
    assert len(windowed.turns) == TURNS
    prompts = [cost.prompt_tokens for cost in windowed.turns[FACTS + RECENT :]]
    assert max(prompts) < 1.2 * min(prompts)
    assert 5 < len(full.turns) < TURNS
    grown = [cost.prompt_tokens for cost in full.turns]
    assert grown == sorted(set(grown))
    assert 700 < grown[-1] <= 1024
    assert "1024" in full.ended


def test_the_same_is_asked_of_every_memory_and_history(report: ConversationReport) -> None:
    windowed, full = (len(conversation.turns) for conversation in report.conversations)
    asked = {one.condition: [a for a in report.asked if a.condition == one.condition] for one in report.asked}
    assert {condition: ones[0].turn for condition, ones in asked.items()} == {
        "window and memory": windowed,
        "memory alone": windowed,
        "somebody else's memory alone": windowed,
        "frozen model, last 4 messages": windowed,
        "frozen model alone": 0,
        "full history, and memory": full,
        "frozen model, full history": full,
    }
    questions = [(fact.question, fact.value) for fact in draw_facts(FACTS, seed=3)]
    assert all([(one.question, one.value) for one in ones] == questions for ones in asked.values())
    assert all(one.right == contains(one.answer, one.value) for one in report.asked)


def test_prompts_hold_what_the_conditions_say(report: ConversationReport) -> None:
    prompts = {one.condition: one.prompt_tokens for one in report.asked if one.question == report.asked[0].question}
    alone = prompts["frozen model alone"]
    assert prompts["memory alone"] == prompts["somebody else's memory alone"] == alone
    last = report.conversations[1].turns[-1].prompt_tokens
    for history in ("full history, and memory", "frozen model, full history"):
        assert last < prompts[history] < 1024
    for window in ("window and memory", "frozen model, last 4 messages"):
        assert alone < prompts[window] < last


def test_facts_are_drawn_in_test_phrasings() -> None:
    count = 5
    facts = draw_facts(count, seed=1)
    assert facts == draw_facts(count, seed=1) != draw_facts(count, seed=2)
    assert len({fact.value for fact in facts}) == count
    trained = {template for attribute in ATTRIBUTES for template in attribute.train.statements}
    for fact in facts:
        assert contains(fact.statement, fact.value)
        assert not contains(fact.another, fact.value)
        assert not contains(fact.question, fact.value)
        assert fact.statement.replace(fact.value, "{}") not in trained


def test_answers_are_counted_and_shown() -> None:
    told = ("Where do I live?", "Oslo")
    asked = (
        Asked("memory alone", 9, *told, "In\nOslo | Norway.", True, 30),
        Asked("memory alone", 9, "Who am I?", "Ann", "No idea.", False, 28),
        Asked("frozen model", 0, *told, "In Rome.", False, 30),
    )
    lines = ConversationReport({}, (Conversation("window", (), "never begun"),), asked).render().splitlines()
    assert "| memory alone | 9 | 30 | 1 of 2 |" in lines
    assert "| frozen model | 0 | 30 | 0 of 1 |" in lines
    assert lines[-3:] == [
        "| Where do I live? | Oslo | memory alone | In Oslo \\| Norway. | right |",
        "| Where do I live? | Oslo | frozen model | In Rome. |  |",
        "| Who am I? | Ann | memory alone | No idea. |  |",
    ]


def test_every_turn_is_measured(report: ConversationReport) -> None:
    for conversation in report.conversations:
        assert [cost.turn for cost in conversation.turns] == list(range(1, len(conversation.turns) + 1))
        for cost in conversation.turns:
            assert cost.seconds > 0
            assert 0 <= cost.cached_tokens < cost.prompt_tokens
            assert cost.store_bytes > 0
    assert [cost.cached_tokens > 0 for cost in report.conversations[1].turns[1:]] == [True] * (
        len(report.conversations[1].turns) - 1
    )


def test_the_table_has_medians_of_the_last_turns() -> None:
    costs = tuple(TurnCost(n, n / 100, 10 * n, 5 * n, 1024 * n) for n in range(1, 46))
    report = ConversationReport(
        {"seed": "0"}, (Conversation("window", costs, "as asked"), Conversation("full", costs[:20], "full"))
    )
    lines = report.render().splitlines()
    assert lines[:3] == ["- seed: 0", "- window: 45 turns, as asked", "- full: 20 turns, full"]
    rows = [line.split(" | ")[:2] for line in lines[6:]]
    assert rows == [["| 20", "window"], ["| 20", "full"], ["| 40", "window"], ["| 45", "window"]]
    prompt, cached = statistics.median(range(310, 401, 10)), statistics.median(range(155, 201, 5))
    assert lines[8] == f"| 40 | window | {0.355:.2f}, 0.40 | {prompt:.0f} | {cached:.0f} | 40 |"


def test_everything_is_written(report: ConversationReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="comes with the `notebooks` extra")
    report.save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "conversation.json").read_text(encoding="utf-8"))
    found = [[cost["seconds"] for cost in c["turns"]] for c in written["conversations"]]
    assert found == [[cost.seconds for cost in c.turns] for c in report.conversations]
    assert [one["answer"] for one in written["asked"]] == [one.answer for one in report.asked]
    assert (tmp_path / "out" / "conversation.md").read_text(encoding="utf-8") == report.render()
    assert (tmp_path / "out" / "conversation.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_drawn_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="matplotlib"):
        run_conversation(output=tmp_path, model=tmp_path / "no model")


def test_a_conversation_has_turns() -> None:
    with pytest.raises(ConfigError, match="turns is 0"):
        run_conversation(turns=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"turns": 3, "facts": 4}, "facts is 4"), ({"full_turns": 2}, "2 turns"), ({"facts": 999}, "999")],
)
def test_facts_need_turns_and_attributes(options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_conversation(**options)  # type: ignore[arg-type]


def test_the_commands_are_there() -> None:
    shown = CliRunner().invoke(app, ["bench", "--help"]).output
    assert all(word in shown for word in ("--quick", "--profile", "concurrency", "conversation"))
    assert "--full-turns" in CliRunner().invoke(app, ["bench", "conversation", "--help"]).output
