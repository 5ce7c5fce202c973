"""All pictures of the project. They need matplotlib, which comes with the `notebooks` extra."""

from deltamem_agents.plots.lines import Curve, Panel, draw_lines, save_plot
from deltamem_agents.plots.memory import draw_states, draw_writes
from deltamem_agents.plots.picture import Picture, require_matplotlib
from deltamem_agents.plots.scores import Score, draw_scores, draw_training

__all__ = [
    "Curve",
    "Panel",
    "Picture",
    "Score",
    "draw_lines",
    "draw_scores",
    "draw_states",
    "draw_training",
    "draw_writes",
    "require_matplotlib",
    "save_plot",
]
