"""Load on a server: many clients in many sessions, and what its sessions hold in the end against what was said."""

from deltamem_agents.bench.serving.report import LoadReport
from deltamem_agents.bench.serving.run import Load, run_load

__all__ = ["Load", "LoadReport", "run_load"]
