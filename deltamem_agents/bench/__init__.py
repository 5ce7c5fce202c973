"""How fast the memory is, always against the frozen backbone in the same run."""

from deltamem_agents.bench.report import BenchReport, BenchRow, render
from deltamem_agents.bench.run import FULL, QUICK, Sizes, run_bench

__all__ = ["FULL", "QUICK", "BenchReport", "BenchRow", "Sizes", "render", "run_bench"]
