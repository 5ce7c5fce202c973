"""Benchmarks with controls: what a memory adds, against what one would use instead, at equal visible budget."""

from deltamem_agents.evaluate.suites.conditions import BUDGETS, CONDITIONS, Cell, Condition
from deltamem_agents.evaluate.suites.conversation import Conversation, Question, Suite, limited
from deltamem_agents.evaluate.suites.loading import SUITES, load_suite
from deltamem_agents.evaluate.suites.measures import Figure, Table, clustered_ratio
from deltamem_agents.evaluate.suites.records import Record
from deltamem_agents.evaluate.suites.report import SuiteReport
from deltamem_agents.evaluate.suites.run import evaluate_suite

__all__ = [
    "BUDGETS",
    "CONDITIONS",
    "SUITES",
    "Cell",
    "Condition",
    "Conversation",
    "Figure",
    "Question",
    "Record",
    "Suite",
    "SuiteReport",
    "Table",
    "clustered_ratio",
    "evaluate_suite",
    "limited",
    "load_suite",
]
