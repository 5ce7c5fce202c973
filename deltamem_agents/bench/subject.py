"""What is measured: a backbone with a memory, and the same backbone without, on the same weights."""

import copy
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel
from deltamem_agents.adapter.default import default_adapter_path
from deltamem_agents.backbone.load import load_backbone
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import AdapterError


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with its memory, and its frozen twin."""

    model: DeltaMemModel
    frozen: PreTrainedModel
    """The same modules without hooks; parameters are shared, so that neither has the better place in memory."""
    tokenizer: PreTrainedTokenizerBase
    adapter: str
    """Which adapter it is, in words."""


def load_subject(model: str | Path, *, seed: int) -> Subject:
    """Loads a backbone, "bundled" or a folder, and its default adapter, or a fresh one if none ships for it."""
    backbone, tokenizer = load_backbone(model)
    frozen = twin(backbone)
    adapter, name = load_adapter(model, backbone, seed=seed)
    return Subject(DeltaMemModel(backbone, adapter), frozen, tokenizer, name)


def twin(backbone: PreTrainedModel) -> PreTrainedModel:
    """The same modules once more, on the same parameters."""
    shared = {id(t): t for t in (*backbone.parameters(), *backbone.buffers())}
    return copy.deepcopy(backbone, shared)


def load_adapter(model: str | Path, backbone: PreTrainedModel, *, seed: int) -> tuple[DeltaMemAdapter, str]:
    """The adapter that ships for a model, or a fresh one: speed does not depend on the weights."""
    try:
        return DeltaMemAdapter.from_pretrained(default_adapter_path(model)), "default"
    except AdapterError:
        return DeltaMemAdapter.initialize(DeltaMemConfig(), backbone, seed=seed), "fresh, MSW 4×8 on o"
