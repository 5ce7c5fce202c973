"""A memory as a picture: its states as heat maps, and what the tokens of a message wrote."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deltamem_agents.plots.picture import COLOURS, INK, Picture, new_figure, tidy

States = NDArray[np.float32]
"""[layers, heads, r, r]: rows of a matrix by value, columns by key."""
FULL_COLOUR = 0.97
"""The quantile of a layer's sizes that is drawn in full colour, and all beyond it."""
GAP = 1
WIDTH = 11.0


def draw_states(states: Mapping[str, States], *, columns: int = 6, title: str = "") -> Picture:
    """Heat maps of memories, one above the other: a strip for each layer, in it a square for each head.

    A layer has one scale in all memories, but not that of other layers: the last are the strongest by far.

    Args:
        states: memories of one shape, by name.
        columns: how many layers stand side by side.
        title: over all of it.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    layers, heads, rank, _ = next(iter(states.values())).shape
    columns = min(columns, layers)
    rows = math.ceil(layers / columns)
    wide, high = columns * (heads * (rank + GAP) + 2 * GAP), rows * (rank + 5 * GAP)
    panel = (WIDTH - 1) * high / wide  # the scale takes an inch
    figure = new_figure(WIDTH, 0.5 * bool(title) + len(states) * (panel + 0.3), title=title)
    scales = np.quantile(np.abs(np.stack(list(states.values()))), FULL_COLOUR, axis=(0, 2, 3, 4))
    scales[scales == 0] = 1
    image = None
    for axes, (name, state) in zip(figure.subplots(len(states), 1, squeeze=False)[:, 0], states.items(), strict=True):
        canvas = _mosaic(state / scales[:, None, None, None], columns)
        image = axes.imshow(canvas, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        for layer in range(layers):
            x, y = _corner(layer, columns, heads, rank)
            axes.text(x - 0.5, y - 1, f"layer {layer}", fontsize=7, color=INK)
        axes.set_title(name, fontsize=10, color=INK, loc="left")
        axes.set_axis_off()
    assert image is not None, "no memories"
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.6, pad=0.01, aspect=25, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["negative", "0", "positive"], fontsize=8)
    bar.outline.set_visible(False)
    return Picture(figure)


def draw_writes(
    messages: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    *,
    reads: Sequence[Sequence[float]] | None = None,
    title: str = "",
) -> Picture:
    """A bar for each token of each message: what share of the memory its write made.

    Args:
        messages: name and tokens, each with its strength; messages stand one below the other.
        reads: for each message how far each token's read opened, 0 to 1, drawn as dots on a scale of their own.
        title: over all of it.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    most = max(len(tokens) for _, tokens in messages)
    strongest = max(strength for _, tokens in messages for _, strength in tokens)
    figure = new_figure(max(6.0, 1.2 + 0.28 * most), 0.5 + 2.3 * len(messages), title=title)
    panels = list(figure.subplots(len(messages), 1, squeeze=False)[:, 0])
    for axes, (name, tokens) in zip(panels, messages, strict=True):
        strengths = [strength for _, strength in tokens]
        axes.bar(range(len(tokens)), strengths, color=COLOURS[0], width=0.75)
        axes.set_xticks(range(len(tokens)), [_visible(text) for text, _ in tokens], rotation=90)
        axes.set(ylabel="strength", xlim=(-0.6, most - 0.4), ylim=(0, 1.08 * strongest or None))
        axes.set_title(name, fontsize=10, color=INK, loc="left")
        tidy(axes)
        axes.grid(visible=False, axis="x")
    for axes, gates in zip(panels, reads or (), strict=reads is not None):
        beside = axes.twinx()
        beside.plot(range(len(gates)), gates, color=COLOURS[1], marker="o", markersize=4, linestyle="none")
        beside.set_ylabel("read gate", color=COLOURS[1])
        beside.set_ylim(-0.03, 1.05)
        tidy(beside)
        beside.spines["right"].set_visible(True)
        beside.grid(visible=False)
    return Picture(figure)


def _mosaic(state: States, columns: int) -> States:
    """All heads on one canvas; NaN, which is not drawn, between them."""
    layers, heads, rank, _ = state.shape
    rows = math.ceil(layers / columns)
    canvas = np.full((rows * (rank + 5 * GAP), columns * (heads * (rank + GAP) + 2 * GAP)), np.nan, np.float32)
    for layer in range(layers):
        x, y = _corner(layer, columns, heads, rank)
        for head in range(heads):
            left = x + head * (rank + GAP)
            canvas[y : y + rank, left : left + rank] = state[layer, head]
    return canvas


def _corner(layer: int, columns: int, heads: int, rank: int) -> tuple[int, int]:
    """Where on the canvas a layer's strip begins: x, y."""
    row, column = divmod(layer, columns)
    return column * (heads * (rank + GAP) + 2 * GAP), row * (rank + 5 * GAP) + 5 * GAP


def _visible(text: str) -> str:
    return text.strip(" ").replace("\n", "⏎") or "␣"
