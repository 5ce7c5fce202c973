"""The example recipe whole, on a copy of the bundled model: a quarter of an hour on two cores."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltamem_agents.backbone.bundled import bundled_path
from deltamem_agents.cli import app


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_example_recalls_one_fact_and_only_from_the_own_memory(tmp_path: Path) -> None:
    shutil.copytree(bundled_path(), tmp_path / "model")
    command = ["train", "example", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["one_fact"] >= 0.9
    assert last["one_fact_swapped"] <= 0.1
