"""Does the memory remember, or does it only steer? Evaluations with controls."""

from deltamem_agents.evaluate.recall import RecallReport, RecallRow, ValueKind, evaluate_recall

__all__ = ["RecallReport", "RecallRow", "ValueKind", "evaluate_recall"]
