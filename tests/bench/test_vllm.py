"""vLLM in a process of its own: what it says is what transformers says, and where it can't start, that is told."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from deltamem_agents.bench.peers import _generate
from deltamem_agents.bench.vllm import vllm_peer
from deltamem_agents.errors import BackboneError
from tests.builders import tiny

PYTHON = os.environ.get("DELTAMEM_VLLM_PYTHON")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="this Python has vLLM")
def test_a_python_without_vllm_is_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(BackboneError, match="ended with 1"),
        vllm_peer(Path(sys.executable), tiny(), tmp_path, length=8, sessions=1, threads=1),
    ):
        pass
    assert "No module named 'vllm'" in capfd.readouterr().err


def test_a_python_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    with (
        pytest.raises(BackboneError, match="no Python at"),
        vllm_peer(tmp_path / "python", tiny(), tmp_path, length=8, sessions=1, threads=1),
    ):
        pass


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="DELTAMEM_VLLM_PYTHON names no Python that has vLLM")
@torch.inference_mode()
def test_vllm_says_the_same(tmp_path: Path) -> None:
    """A model whose likeliest tokens stay so in bfloat16."""
    model = tiny(hidden_size=128, head_dim=32, initializer_range=0.2)
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12]]
    with vllm_peer(Path(str(PYTHON)), model.bfloat16(), tmp_path, length=10, sessions=2, threads=1) as start:
        for _ in range(2):
            decode = start(prompts)
            assert [decode(1), decode(5)] == [_generate(model)(prompts)(1), _generate(model)(prompts)(6)]
