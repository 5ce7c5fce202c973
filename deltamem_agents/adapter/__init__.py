"""Adapters: attaching a memory to any Hugging Face decoder, loading and saving."""

from deltamem_agents.adapter.adapter import DeltaMemAdapter, backbone_fingerprint
from deltamem_agents.adapter.model import DeltaMemModel, DeltaMemOutput

__all__ = ["DeltaMemAdapter", "DeltaMemModel", "DeltaMemOutput", "backbone_fingerprint"]
