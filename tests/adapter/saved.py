"""Adapters and their files."""

import json
from pathlib import Path

import torch

from deltamem_agents.adapter import DeltaMemAdapter
from deltamem_agents.adapter.files import CONFIG_FILE
from deltamem_agents.config import DeltaMemConfig
from tests.builders import randomised, tiny

PUBLISHED = Path(__file__).parent.parent / "parity" / "qwen3_msw_qo"
BACKBONE = tiny()


def adapter_of(**options: object) -> DeltaMemAdapter:
    return randomised(DeltaMemAdapter.initialize(DeltaMemConfig.parse({"rank": 2, **options}), BACKBONE))


def same(one: DeltaMemAdapter, other: DeltaMemAdapter) -> bool:
    weights, others = one.named_tensors(), other.named_tensors()
    return weights.keys() == others.keys() and all(torch.equal(others[name], t) for name, t in weights.items())


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_config(folder: Path, **changes: object) -> None:
    data = json.loads((folder / CONFIG_FILE).read_text()) | changes
    (folder / CONFIG_FILE).write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))
