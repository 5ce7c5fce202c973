"""Benchmarks as lm-evaluation-harness has them, with a memory beside the frozen model: does it do harm?

They need lm_eval, which comes with the `harness` extra. Its model class is in the module `model`: `DeltaMemLM`.
"""

from deltamem_agents.evaluate.harness.memory import MEMORIES, full_memory
from deltamem_agents.evaluate.harness.report import Figure, HarnessReport
from deltamem_agents.evaluate.harness.run import evaluate_harness
from deltamem_agents.evaluate.harness.tasks import require_harness

__all__ = ["MEMORIES", "Figure", "HarnessReport", "evaluate_harness", "full_memory", "require_harness"]
