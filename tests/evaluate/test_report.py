"""From verdicts to the table."""

import json
from collections.abc import Mapping

import pytest

from deltamem_agents.evaluate.intervals import wilson
from deltamem_agents.evaluate.judging import Verdict
from deltamem_agents.evaluate.perplexity import Reading
from deltamem_agents.evaluate.report import Asked, RecallReport, change_line, figure_line, reading_line
from deltamem_agents.evaluate.rows import ROWS, Condition

RIGHT, STALE, UNSURE, NOTHING = (Verdict(*flags) for flags in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)))  # type: ignore[arg-type]


def asked(verdicts: Mapping[Condition, Verdict], *, about: str = "told", seed: int = 0) -> Asked:
    return Asked("row", seed, about, "Where?", ("Oslo",), (), dict.fromkeys(verdicts, "text"), verdicts)


def test_shares_under_each_condition() -> None:
    questions = [asked({"own": RIGHT, "swapped": NOTHING, "frozen": NOTHING})] * 9
    questions += [asked({"own": NOTHING, "frozen": RIGHT}, seed=1)]  # nobody to swap with
    line = figure_line("facts-4", ROWS["facts-4"].figures[0], questions)
    assert {c: (s.value, s.count) for c, s in line.shares.items()} == {
        "own": (0.9, 10),
        "swapped": (0.0, 9),
        "frozen": (0.1, 10),
    }
    assert (line.shares["own"].low, line.shares["own"].high) == wilson(9, 10)
    assert line.seeds == {0: 1.0, 1: 0.0}
    assert line.met
    assert not figure_line("facts-1", ROWS["facts-1"].figures[0], questions).met


def test_an_updated_fact_has_a_new_and_an_old_value() -> None:
    questions = [asked({"own": v}) for v in (RIGHT, RIGHT, STALE, NOTHING)]
    new, old = (figure_line("updated", figure, questions) for figure in ROWS["updated"].figures)
    assert (new.shares["own"].value, old.shares["own"].value) == (0.5, 0.25)
    assert (new.met, old.met) == (False, False)


def test_never_told_and_told_are_counted_apart() -> None:
    known = Verdict(right=True, stale=False, unsure=True)
    questions = [asked({"own": known}, about="untold")] * 9 + [asked({"own": NOTHING}, about="untold")]
    questions += [asked({"own": v}) for v in (RIGHT, RIGHT, RIGHT, UNSURE)]
    says_so, wrongly = (figure_line("untold", figure, questions) for figure in ROWS["untold"].figures)
    assert (says_so.shares["own"].value, says_so.shares["own"].count, says_so.met) == (0.9, 10, True)
    assert (wrongly.shares["own"].value, wrongly.shares["own"].count, wrongly.met) == (0.25, 4, False)


def test_labels_against_twice_the_frozen_model() -> None:
    figure = ROWS["labels"].figures[0]

    def met(own: int, frozen: int) -> bool | None:
        hits = [{"own": n < own, "frozen": n < frozen} for n in range(9)]
        rows = [asked({c: RIGHT if hit else NOTHING for c, hit in found.items()}) for found in hits]  # type: ignore[misc]
        return figure_line("labels", figure, rows).met

    assert [met(4, 2), met(3, 2), met(1, 0), met(0, 0)] == [True, False, True, False]


def test_before_and_after() -> None:
    pairs = [(RIGHT, RIGHT)] * 17 + [(RIGHT, NOTHING)] * 2 + [(NOTHING, RIGHT)]
    questions = [asked({"before": b, "own": a, "swapped": NOTHING}) for b, a in pairs]
    before, after = (figure_line("live-turns", figure, questions) for figure in ROWS["live-turns"].figures)
    assert before.shares["own"].value == 0.95
    assert "swapped" not in before.shares, "that was asked afterwards"
    assert (after.shares["own"].value, after.met) == (0.9, True)
    change = change_line("live-turns", "change", questions)
    assert change.shares["own"].value == pytest.approx(-0.05)
    assert change.shares["own"].low < -0.05 < change.shares["own"].high


def test_perplexity_is_paired() -> None:
    figure = ROWS["perplexity"].figures[0]
    line = reading_line("perplexity", figure, [Reading(0, 3.02, 3.0), Reading(1, 2.0, 2.0)])
    assert line.shares["own"].value == pytest.approx(0.01005, abs=1e-5)
    assert line.met is False
    assert line.seeds == {0: pytest.approx(0.0202, abs=1e-4), 1: 0.0}


def test_the_table_and_the_data() -> None:
    questions = (asked({"own": RIGHT, "swapped": NOTHING, "frozen": NOTHING}),) * 200
    line = figure_line("facts-1", ROWS["facts-1"].figures[0], questions)
    report = RecallReport((line,), {"seed": "0"}, questions[:1], ())
    text = "| 1 fact | ≥ 98 % | 100.0 % (98–100) | hit | 0.0 % (0–2) | 0.0 % (0–2) | 200 | 100.0 % |"
    assert text in report.render().splitlines()
    data = json.loads(json.dumps(report.as_dict()))
    assert data["questions"][0]["verdicts"]["own"]["right"]
    assert data["lines"][0]["shares"]["own"]["count"] == 200
