"""Pauses beside a long prompt, on a tiny model. How long anything takes is no test's business."""

from pathlib import Path

from deltamem_agents.bench.pause import run_pause
from tests.chat import byte_tokenizer, chat_backbone


def test_both_ways_are_measured_in_turn(tmp_path: Path) -> None:
    chat_backbone(context=4096).save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    report = run_pause(prompt=400, sessions=2, repeats=1, model=tmp_path / "tiny", output=tmp_path / "out" / "pause")
    pause, first, usual = report.rows
    assert pause.name == "worst pause of 2 sessions beside a prompt of 400 tokens, in parts of 128 ÷ whole"
    assert all(min(row.samples) > 0 for row in report.rows)
    assert [len(row.samples) for row in (pause, first, usual)] == [1, 1, 2]
    assert "worst pause" in (tmp_path / "out" / "pause.md").read_text(encoding="utf-8")
