"""Processes as `accelerate launch` and `torchrun` start them: they draw different episodes and learn one adapter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def launch(*arguments: str, port: int) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += ["-m", "tests.train.two_processes", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_learn_one_adapter_and_go_on_after_a_stop(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert launch(str(whole), "6", port=29611).count("processes 2, step 6, same True") == 2
    launch(str(parts), "4", port=29612)
    assert launch(str(parts), "6", port=29613).count("processes 2, step 6, same True") == 2
    first, second = (torch.load(f / "checkpoint.pt", weights_only=True)["adapter"] for f in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_heads_begin_aligned_in_the_same_way(tmp_path: Path) -> None:
    said = launch(str(tmp_path / "run"), "2", "0.002", "0.05", port=29615)
    assert said.count("processes 2, step 2, same True") == 2


def test_a_loss_that_is_not_finite_stops_both(tmp_path: Path) -> None:
    said = launch(str(tmp_path / "run"), "6", "1e30", port=29614)
    assert said.count("expected a finite number") == 2
    assert sorted(p.name for p in (tmp_path / "run").glob("failed-batch-*.jsonl")) == [
        "failed-batch-0.jsonl",
        "failed-batch-1.jsonl",
    ]
