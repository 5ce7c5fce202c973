"""The benchmark's structure and arithmetic, on a tiny model. How fast anything is, is no test's business."""

import json
import statistics
from pathlib import Path

import pytest

from deltamem_agents.bench import QUICK, BenchReport, BenchRow, Point, Series, render, run_bench, run_concurrency
from deltamem_agents.bench.forwards import interleave
from tests.chat import byte_tokenizer, chat_backbone

TARGETS = {
    f"prefill of {QUICK.prefill[-1]} tokens ÷ frozen": 1.05,
    f"decode per token, written, KV cache {QUICK.cache} ÷ frozen": 1.10,
    f"decode per token, only read, KV cache {QUICK.cache} ÷ frozen": 1.10,
    "8 sessions decoded together ÷ 1, tokens/s": 4,
    f"turn {QUICK.late} ÷ turn {QUICK.early}, window of 4 messages": 1.05,
    "state load of a session, new process": 20,
    f"peak memory, {QUICK.process_tokens} tokens ÷ frozen": 1.02,
    "rendering 2,000 short messages ÷ 500": 5.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    chat_backbone().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> BenchReport:
    return run_bench(quick=True, profile=True, seed=3, output=folder.parent / "out" / "bench.md", model=folder)


def test_each_target_has_its_row(report: BenchReport) -> None:
    assert {row.name: row.target for row in report.rows if row.target is not None} == TARGETS
    assert [row.name for row in report.rows if row.at_least] == ["8 sessions decoded together ÷ 1, tokens/s"]


def test_every_row_is_measured(report: BenchReport) -> None:
    for row in report.rows:
        assert row.samples
        assert min(row.samples) > 0
        low, high = row.spread
        assert low <= row.value <= high


def test_ratios_follow_from_what_was_measured(report: BenchReport) -> None:
    ratios = [row for row in report.rows if row.unit == "×"]
    assert ratios
    for row in ratios:
        assert row.measured is not None
        above, below = row.measured
        factor = 8 if row.at_least else 1
        assert row.samples == pytest.approx([factor * a / b for a, b in zip(above, below, strict=True)])
        assert row.value == statistics.median(row.samples)


def test_every_size_is_measured_beside_the_frozen_backbone(report: BenchReport) -> None:
    sizes = [tuple(point.size for point in series.points) for series in report.series]
    assert sizes == [QUICK.prefill, QUICK.caches, QUICK.together]
    for series in report.series:
        for point in series.points:
            assert len(point.memory) == len(point.frozen) > 0
            assert min(*point.memory, *point.frozen) > 0
    assert [point.tokens for point in report.series[0].points] == list(QUICK.prefill)
    assert [point.tokens for point in report.series[2].points] == list(QUICK.together)


def test_rows_with_targets_are_points_of_the_series(report: BenchReport) -> None:
    rows = {row.name: row.measured for row in report.rows}
    prefill, decode, batch = report.series
    point = prefill.at(QUICK.prefill[-1])
    assert rows[f"prefill of {point.size} tokens ÷ frozen"] == (point.memory, point.frozen)
    point = decode.at(QUICK.cache)
    assert rows[f"decode per token, written, KV cache {point.size} ÷ frozen"] == (point.memory, point.frozen)
    pair = (batch.at(1).memory, batch.at(QUICK.sessions).memory)
    assert rows[f"{QUICK.sessions} sessions decoded together ÷ 1, tokens/s"] == pair


def test_each_series_is_a_table() -> None:
    alone = Point(size=1, tokens=1, memory=(100.0, 125.0, 160.0), frozen=(100.0, 100.0, 100.0))
    eight = Point(size=8, tokens=8, memory=(200.0, 200.0, 220.0), frozen=(160.0, 200.0, 200.0))
    series = Series(name="Together", axis="sessions", points=(alone, eight))
    lines = render(BenchReport(setup={}, rows=(), series=(series,))).splitlines()
    assert lines[lines.index("## Together") + 2 :] == [
        "| sessions | with memory, tokens/s | ÷ first row | frozen, tokens/s | time ÷ frozen | spread |",
        "|---|---|---|---|---|---|",
        "| 1 | 8.000 | 1.000 | 10 | 1.250 | 1.125–1.425 |",
        "| 8 | 40 | 5.000 | 40 | 1.100 | 1.050–1.175 |",
    ]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_steps_take_turns_and_each_begins_as_often(count: int) -> None:
    called: list[int] = []
    times = interleave(*(lambda which=which: called.append(which) for which in range(count)), repeats=2 * count)
    assert [len(one) for one in times] == [2 * count] * count
    rounds = [called[start : start + count] for start in range(0, len(called), count)]
    assert all(sorted(one) == list(range(count)) for one in rounds)
    assert sorted(one[0] for one in rounds) == sorted([*range(count), *range(count)])


def test_the_head_says_where_and_on_what(report: BenchReport) -> None:
    assert report.setup.keys() == {"machine", "threads", "versions", "model", "seed", "mode"}
    assert report.setup["seed"] == "3"
    assert report.setup["mode"] == "quick"
    assert "torch" in report.setup["versions"]
    assert "cores" in report.setup["machine"]


def test_the_mechanism_is_compared_with_the_one_before(report: BenchReport) -> None:
    """Decoding, written and only read, and prefill: against each other and the frozen backbone, in the same turns."""
    rows = {row.name: row for row in report.rows if "gated on" in row.name}
    assert len(rows) == 9
    for case in ("decode per token, written", "decode per token, only read", f"prefill of {QUICK.prefill[-1]} tokens"):
        pair = rows[f"{case}, gated on o ÷ ungated on q and o"].measured
        ours, theirs = (rows[f"{case}, {name} ÷ frozen"].measured for name in ("gated on o", "ungated on q and o"))
        assert pair == (ours[0], theirs[0])
        assert ours[1] == theirs[1]


def test_scans_are_compared(report: BenchReport) -> None:
    scans = [row.name.rsplit(", ", 1)[1] for row in report.rows if row.name.startswith("scan")]
    assert scans == ["naive", "chunked", "native"]


def test_many_sessions_at_once_are_measured(folder: Path) -> None:
    alone = run_concurrency(quick=True, model=folder)
    assert [row.name for row in alone.rows] == [
        f"{QUICK.callers} threads on {QUICK.callers} sessions ÷ one by one, tokens/s",
        f"{QUICK.sessions} sessions in one `batch` ÷ one by one, tokens/s",
    ]
    assert all(row.measured_unit == "ms a token" for row in alone.rows)


def test_profiles_show_operators(report: BenchReport) -> None:
    assert len(report.profiles) == 2
    assert all("aten::" in table for table in report.profiles.values())


def test_the_report_is_written_as_markdown_and_json(report: BenchReport, folder: Path) -> None:
    path = folder.parent / "out" / "bench"
    assert path.with_suffix(".md").read_text(encoding="utf-8") == render(report)
    written = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert [row["samples"] for row in written["rows"]] == [list(row.samples) for row in report.rows]
    assert [row["hit"] for row in written["rows"]] == [row.hit for row in report.rows]
    points = [point for series in report.series for point in series.points]
    assert [tuple(p["memory"]) for one in written["series"] for p in one["points"]] == [p.memory for p in points]


def test_a_table_line_shows_target_value_and_verdict() -> None:
    slow = BenchRow.ratio("decode", [12.0, 24.0, 13.0], [10.0, 20.0, 10.0], target=1.1)
    together = BenchRow.ratio("batch", [10.0], [16.0], factor=8, target=4, at_least=True)
    load = BenchRow(name="load", samples=(3.0,), unit="ms", target=20)
    scan = BenchRow(name="scan", samples=(1.0, 2.0), unit="ms")
    assert [row.hit for row in (slow, together, load, scan)] == [False, True, True, None]
    lines = render(BenchReport(setup={"seed": "0"}, rows=(slow, together, load, scan))).splitlines()
    assert lines[0] == "- seed: 0"
    assert "| decode | ≤ 1.1 | 1.200 | 1.200–1.250 | 13 / 10 ms | miss |" in lines
    assert "| batch | ≥ 4 | 5.000 | 5.000–5.000 | 10 / 16 ms | hit |" in lines
    assert "| load | ≤ 20 ms | 3.000 ms | 3.000–3.000 |  | hit |" in lines
    assert "| scan |  | 1.500 ms | 1.250–1.750 |  |  |" in lines
