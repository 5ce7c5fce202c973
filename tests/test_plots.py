"""Plots are PNG files of the right shape, drawn from what they are given; how they look is for people to judge."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from deltamem_agents import ConfigError
from deltamem_agents.plots import (
    Curve,
    Panel,
    Score,
    draw_lines,
    draw_scores,
    draw_states,
    draw_training,
    draw_writes,
    save_plot,
)

RISING = Curve(label="rising", x=(1, 2, 3), y=(1.0, 2.0, 4.0), low=(0.5, 1.0, 3.0), high=(2.0, 3.0, 5.0), dots=True)
FLAT = Curve(label="flat", x=(1, 2, 3), y=(1.0, 1.0, 1.0), faint=True)
PANELS = [
    Panel(x_label="turn", y_label="s", curves=(RISING, FLAT)),
    Panel(x_label="turn", y_label="tokens", curves=(RISING,)),
]


def test_a_plot_is_written_as_png(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "plot.png"
    save_plot(path, PANELS[:1], title="one")
    narrow = size(path.read_bytes())
    save_plot(path, PANELS, title="two")
    assert size(path.read_bytes()) == (2 * narrow[0], narrow[1])


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"matplotlib.*pip install"):
        save_plot(tmp_path / "plot.png", PANELS, title="two")
    assert not list(tmp_path.iterdir())


def test_a_notebook_shows_a_picture_at_half_its_pixels() -> None:
    picture = draw_lines(PANELS, title="two")
    data, shown = picture._repr_png_()
    assert size(data)[0] == 2 * shown["width"]
    assert repr(picture) == "Picture('two')"
    assert picture.png() == data, "the same drawing gives the same bytes"


def test_curves_of_one_label_share_a_colour_and_faint_ones_are_not_named() -> None:
    first, second = draw_lines(PANELS, title="").figure.axes
    assert first.lines[0].get_color() == second.lines[0].get_color() != first.lines[1].get_color()
    assert (legend(first), legend(second)) == ([], []), "one curve needs no name"
    level = replace(FLAT, label="level", faint=False)
    (axes,) = draw_lines([replace(PANELS[0], curves=(RISING, FLAT, level))], title="").figure.axes
    assert legend(axes) == ["rising", "level"]


def test_scores_have_a_bar_for_each_condition_and_budget() -> None:
    conditions = ("frozen", "δ-mem + window", "δ-mem + window, swapped")
    scores = [
        Score(suite=suite, condition=condition, budget=budget, measure="F1", mean=mean, low=mean - 0.1, high=mean + 0.1)
        for suite in ("LoCoMo", "bAbI")
        for mean, condition in zip((0.2, 0.6, 0.1), conditions, strict=True)
        for budget in (128, 256)
    ]
    first, second = draw_scores(scores).figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == list(conditions)
    assert (first.get_title(), second.get_title()) == ("LoCoMo", "bAbI")
    widths = [bar.get_width() for bar in bars(first)]
    assert widths == [0.2, 0.2, 0.6, 0.6, 0.1, 0.1]
    assert [bool(bar.get_hatch()) for bar in first.patches] == [False] * 4 + [True] * 2
    places = [bar.get_y() for bar in bars(first)]
    assert places == sorted(places), "no bar covers another"


def test_a_score_below_zero_stays_in_the_picture() -> None:
    score = Score(suite="s", condition="zero", budget=None, measure="recovery", mean=-0.2, low=-0.3, high=0.1)
    assert draw_scores([score]).figure.axes[0].get_xlim()[0] <= -0.3


def test_training_shows_what_its_log_holds(tmp_path: Path) -> None:
    records: list[dict[str, float]] = [{"step": step, "loss": 3.0 / step} for step in range(1, 21)]
    records[9] |= {"recall": 0.5, "recall_swapped": 0.1, "one_fact": 0.4, "one_fact_swapped": 0.0}
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    for log in (records, tmp_path / "log.jsonl"):
        loss, recall = draw_training(log).figure.axes
        assert numbers(loss.lines[0].get_ydata()) == [record["loss"] for record in records]
        assert legend(recall) == [
            "recall, own memory",
            "recall, another's memory",
            "one fact, own memory",
            "one fact, another's memory",
        ]
        assert [numbers(line.get_ydata()) for line in recall.lines] == [[0.5], [0.1], [0.4], [0.0]]
    assert len(draw_training(records[:5]).figure.axes) == 1
    (_, answers) = draw_training([{**record, "exact": 0.5} for record in records]).figure.axes
    assert legend(answers)[0] == "in training"


def test_states_have_a_square_for_each_head_and_a_scale_for_each_layer() -> None:
    state = np.random.default_rng(0).normal(size=(5, 2, 3, 3)).astype(np.float32)
    strong = state * np.array([1, 10, 100, 1000, 0], np.float32)[:, None, None, None]
    for states in ({"a": state}, {"a": state, "b": strong}):
        figure = draw_states(states, columns=3).figure
        maps = [axes for axes in figure.axes if axes.get_title(loc="left")]
        assert [axes.get_title(loc="left") for axes in maps] == list(states)
        assert np.isfinite(canvas(maps[0])).sum() == state.size
        assert [text.get_text() for text in maps[0].texts] == [f"layer {n}" for n in range(5)]
    assert np.nanmax(np.abs(canvas(maps[1]))) < 3, "no layer outshines the others"


def test_writes_have_a_bar_for_each_token() -> None:
    messages = [("Hello.", [("Hel", 0.1), ("lo", 0.2), ("\n", 0.3)]), ("Hi", [(" ", 0.0)])]
    first, second = draw_writes(messages, title="Writes").figure.axes
    assert [bar.get_height() for bar in bars(first)] == [0.1, 0.2, 0.3]
    assert [text.get_text() for text in first.get_xticklabels()] == ["Hel", "lo", "⏎"]
    assert [text.get_text() for text in second.get_xticklabels()] == ["␣"]
    assert first.get_ylim() == second.get_ylim()


def test_reads_are_dots_beside_the_bars_of_writes() -> None:
    messages = [("Hello.", [("Hel", 0.1), ("lo", 0.2)]), ("Hi", [("Hi", 0.3)])]
    figure = draw_writes(messages, reads=[[0.0, 0.9], [0.4]]).figure
    beside = [axes for axes in figure.axes if axes.get_ylabel() == "read gate"]
    assert [numbers(axes.lines[0].get_ydata()) for axes in beside] == [[0.0, 0.9], [0.4]]
    assert all(axes.get_ylim()[0] < 0 and axes.get_ylim()[1] > 1 for axes in beside)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        draw_writes(messages, reads=[[0.0, 0.9]])


def numbers(data: object) -> list[float]:
    return [float(number) for number in np.asarray(data)]


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def canvas(axes: Axes) -> NDArray[np.float64]:
    """What an image shows, NaN where it shows nothing."""
    return np.ma.filled(np.ma.asarray(axes.images[0].get_array(), dtype=np.float64), np.nan)


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def size(data: bytes) -> tuple[int, int]:
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
