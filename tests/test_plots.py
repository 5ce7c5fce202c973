"""Plots are PNG files of the right shape; what they show is for people to judge."""

import sys
from pathlib import Path

import pytest

from deltamem_agents import ConfigError
from deltamem_agents.plots import Curve, Panel, save_plot

RISING = Curve(label="rising", x=(1, 2, 3), y=(1.0, 2.0, 4.0))
FLAT = Curve(label="flat", x=(1, 2, 3), y=(1.0, 1.0, 1.0), faint=True)
PANELS = [
    Panel(x_label="turn", y_label="s", curves=(RISING, FLAT)),
    Panel(x_label="turn", y_label="tokens", curves=(RISING,)),
]


def test_a_plot_is_written_as_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="comes with the `notebooks` extra")
    path = tmp_path / "new folder" / "plot.png"
    save_plot(path, PANELS[:1], title="one")
    narrow = _size(path)
    save_plot(path, PANELS, title="two")
    wide = _size(path)
    assert wide == (2 * narrow[0], narrow[1])


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"matplotlib.*pip install"):
        save_plot(tmp_path / "plot.png", PANELS, title="two")
    assert not list(tmp_path.iterdir())


def _size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
