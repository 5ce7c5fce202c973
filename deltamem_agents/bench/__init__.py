"""How fast the memory is, always against the frozen backbone in the same run; and what long conversations take."""

from deltamem_agents.bench.conversation import Conversation, ConversationReport, TurnCost, run_conversation
from deltamem_agents.bench.report import BenchReport, BenchRow, Point, Series, render
from deltamem_agents.bench.run import FULL, QUICK, Sizes, run_bench, run_concurrency

__all__ = [
    "FULL",
    "QUICK",
    "BenchReport",
    "BenchRow",
    "Conversation",
    "ConversationReport",
    "Point",
    "Series",
    "Sizes",
    "TurnCost",
    "render",
    "run_bench",
    "run_concurrency",
    "run_conversation",
]
