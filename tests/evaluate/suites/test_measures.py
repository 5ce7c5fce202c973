"""From records to figures: means, recovery, differences, and intervals by conversation."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.suites import CONDITIONS, Cell, Record, SuiteReport, Table, clustered_ratio
from deltamem_agents.evaluate.suites.measures import counted_nats, ranked_first, score


def record(condition: str, question: int, nats: float, *, budget: int | None = None, **changed: object) -> Record:
    values: dict[str, object] = {
        "conversation": f"talk-{question // 2}",
        "question": str(question),
        "category": "odd" if question % 2 else "even",
        "condition": condition,
        "budget": budget,
        "answer": "x",
        "scores": {"f1": nats / 10},
        "nats": nats,
        "recalls": True,
        "ranked_first": nats < 3,
        "prompt_tokens": 30,
        "visible_tokens": budget or 0,
        "evidence_share": None,
        "seconds": 0.5,
        "kept_bytes": 100,
    }
    return Record(**{**values, **changed})  # type: ignore[arg-type]


def records(**nats: list[float]) -> list[Record]:
    return [
        record(name, number, value, budget=128 if CONDITIONS[name.replace("_", "+")].budgeted else None)
        if "_" not in name
        else record(name.replace("_", "+"), number, value, budget=128)
        for name, values in nats.items()
        for number, value in enumerate(values)
    ]


def test_recovery_is_the_share_of_what_seeing_everything_brings() -> None:
    table = Table(records(none=[4, 5, 6, 7], state=[3, 5, 5, 7], full=[2, 3, 4, 5]))
    recovery = {name: table.recovery(Cell(name, None)) for name in ("none", "state", "full")}
    assert {name: figure and figure.value for name, figure in recovery.items()} == {"none": 0, "state": 0.25, "full": 1}
    over = table.recovery(Cell("full", None), over=Cell("state", None))
    assert over is not None
    assert over.value == pytest.approx(0.75)
    assert over.above_zero
    seen = Table(records(none=[4, 5], state=[3, 5], evidence=[2, 5]))
    of_evidence = seen.recovery(Cell("state", None), of="evidence")
    assert of_evidence is not None
    assert of_evidence.value == 0.5


def test_what_no_context_makes_likelier_does_not_count() -> None:
    rows = records(none=[4, 4], state=[3, 3], full=[2, 2])
    more = [record(name, 9, 1.0, recalls=False) for name in ("none", "state", "full")]
    assert Table([*rows, *more]).recovery(Cell("state", None)) == Table(rows).recovery(Cell("state", None))
    figure = Table([*rows, *more]).mean(Cell("none", None), counted_nats)
    assert figure is not None
    assert (figure.value, figure.count) == (4, 2)


def test_no_recovery_where_seeing_does_not_help() -> None:
    assert Table(records(none=[4, 4], state=[3, 3], full=[4, 5])).recovery(Cell("state", None)) is None
    assert Table(records(none=[4, 4], state=[3, 3])).recovery(Cell("state", None)) is None


def test_differences_are_paired() -> None:
    table = Table(records(none=[1, 9, 5, 7], state=[2, 10, 6, 8]))
    figure = table.difference(Cell("state", None), Cell("none", None), counted_nats)
    assert figure is not None
    assert (figure.value, figure.low, figure.high) == (1, 1, 1)
    ranked = table.mean(Cell("none", None), ranked_first)
    odd = table.mean(Cell("none", None), score("f1"), of="odd")
    assert ranked is not None
    assert odd is not None
    assert ranked.value == 0.25
    assert (odd.value, odd.count) == (pytest.approx(0.8), 2)


@given(st.lists(st.tuples(st.floats(-5, 5), st.sampled_from("abcde")), min_size=1, max_size=20))
def test_an_interval_holds_between_the_clusters_extremes(values: list[tuple[float, str]]) -> None:
    numbers, clusters = [v for v, _ in values], [c for _, c in values]
    figure = clustered_ratio(numbers, [1.0] * len(numbers), clusters, draws=200)
    assert figure is not None
    assert figure.value == pytest.approx(sum(numbers) / len(numbers), abs=1e-9)
    assert figure == clustered_ratio(numbers, [1.0] * len(numbers), clusters, draws=200)
    if len(set(clusters)) == 1:
        assert figure.low is None
    else:
        assert figure.low is not None
        assert figure.high is not None
        assert min(numbers) - 1e-9 <= figure.low <= figure.high <= max(numbers) + 1e-9


def test_intervals_cover_the_truth_when_questions_of_a_talk_are_alike() -> None:
    rng, covered, naive = random.Random(0), 0, 0
    for _ in range(100):
        talks = [rng.gauss(0, 1) for _ in range(30)]
        values = [(talk + rng.gauss(0, 0.1), f"{number}") for number, talk in enumerate(talks) for _ in range(5)]
        numbers = [v for v, _ in values]
        by_talk = clustered_ratio(numbers, [1.0] * 150, [c for _, c in values], draws=300)
        by_question = clustered_ratio(numbers, [1.0] * 150, [str(n) for n in range(150)], draws=300)
        assert by_talk is not None
        assert by_question is not None
        covered += (by_talk.low or 0) <= 0 <= (by_talk.high or 0)
        naive += (by_question.low or 0) <= 0 <= (by_question.high or 0)
    assert covered >= 88
    assert naive < covered - 20, "drawing questions by themselves would promise too much"


def test_cells_must_have_the_same_questions_and_keep_their_budget() -> None:
    rows = records(none=[1, 2], state=[1, 2])
    with pytest.raises(ConfigError, match=r"different questions \(none : 2, state : 1\)"):
        Table(rows[:-1])
    with pytest.raises(ConfigError, match="window shows 129 tokens for 0, over the budget of 128"):
        Table([record("window", 0, 1.0, budget=128, visible_tokens=129)])


def test_the_tables() -> None:
    rows = records(
        none=[4, 4, 6, 6], full=[2, 2, 2, 2], state=[3, 3, 5, 5], swapped=[4, 4, 6, 6], window=[4, 4, 4, 4],
        state_window=[3, 3, 3, 3], swapped_window=[4, 4, 5, 5],
    )  # fmt: skip
    report = SuiteReport("Title", {"seed": "0"}, tuple(rows))
    text = report.render()
    assert "| δ-mem alone |  | 33.3 % (25–50) | 4.000 (3.00 to 5.00) | 40.0 % (30–50) | 0.0 % (0–0) |" in text
    assert "| frozen + recent window | 128 | +33.3 (+25.0 to +50.0) | -16.7 (-25.0 to +0.0) | -1.000" in text
    assert "| δ-mem alone |  | 0.0 % | 0.0 % |" in text
    gains = {(gain["added_to"], gain["budget"]) for gain in report.gains()}
    assert gains == {("none", None), ("window", 128)}
    line = next(line for line in report.lines() if line["condition"] == "state+window")
    assert line["budget"] == 128
    assert (line["prompt_tokens"], line["kept_bytes"]) == (30, 100)
