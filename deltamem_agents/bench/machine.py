"""Where and on what something was measured."""

import os
import platform
from pathlib import Path

import torch
import transformers

from deltamem_agents.bench.subject import Subject


def describe(subject: Subject, model: str | Path, *, seed: int) -> dict[str, str]:
    """Machine, versions, model and seed, by name."""
    name, config = Path(model).name, subject.frozen.config
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores{load}, {platform.system()}",
        "threads": str(torch.get_num_threads()),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "model": f"{name}, {subject.frozen.dtype}, {config._attn_implementation}; {subject.adapter} adapter",
        "seed": str(seed),
    }


def _processor() -> str:
    """The processor's name; the kernel knows more than `platform` does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
