"""Does the memory remember, or does it only steer? Evaluations with controls."""

from deltamem_agents.evaluate.recall import evaluate_recall
from deltamem_agents.evaluate.report import Line, RecallReport, Share
from deltamem_agents.evaluate.rows import ROWS

__all__ = ["ROWS", "Line", "RecallReport", "Share", "evaluate_recall"]
