"""The adapter: a δ-mem layer for each attention module, its config, and its files."""

import hashlib
import json
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from deltamem_agents.adapter import files
from deltamem_agents.adapter.attach import AttentionSite, find_attention
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import AdapterError, FingerprintError
from deltamem_agents.layer import DeltaMemLayer
from deltamem_agents.state import MemoryState


class DeltaMemAdapter(nn.Module):
    """The trained part: a few MB of projections for one kind of backbone.

    Args:
        config: its options.
        layers: memory layers by the module path of their attention, shallowest first.
        backbone: what `backbone_fingerprint` gave for the backbone it was made for; None accepts any that fits.
    """

    def __init__(
        self, config: DeltaMemConfig, layers: dict[str, DeltaMemLayer], *, backbone: str | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.paths = tuple(layers)
        self._layers = nn.ModuleList(layers.values())

    @property
    def layers(self) -> dict[str, DeltaMemLayer]:
        """Memory layers by module path, in the order of the state's layers."""
        return dict(zip(self.paths, self._layers, strict=True))  # type: ignore[arg-type]

    @classmethod
    def initialize(cls, config: DeltaMemConfig, backbone: nn.Module, *, seed: int = 0) -> Self:
        """A fresh adapter for `backbone`, ready to be trained.

        Raises:
            UnsupportedArchitectureError: the backbone's attention cannot carry a memory.
            AdapterError: the config names layers that the backbone does not have.
        """
        sites = _targets(config, find_attention(backbone))
        layers = {path: DeltaMemLayer(config, site.shape) for path, site in sites.items()}
        generator = torch.Generator().manual_seed(seed)
        for layer in layers.values():
            layer.reset_parameters(generator)
        return cls(config, layers, backbone=backbone_fingerprint(backbone))

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path) -> Self:
        """Loads an adapter folder or hub repository, ours (safetensors) or a published one (`delta_mem_adapter.pt`).

        Raises:
            AdapterError: nothing there, unreadable, or tensors missing, unexpected or of the wrong shape.
            ConfigError: options that this package does not serve.
        """
        config, tensors, backbone = files.read_adapter(path_or_hub_id)
        layers = {path: _build_layer(path, config, part) for path, part in files.by_layer(tensors).items()}
        if not layers:
            raise AdapterError(f"{path_or_hub_id} has no memory layers, expected tensors like <module>.memory_q_proj")
        return cls(config, layers, backbone=backbone)

    def save_pretrained(self, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Writes `delta_mem_config.json` and `delta_mem_adapter.safetensors`, both or neither.

        Args:
            path: a folder; created when missing.
            dtype: storage dtype; None keeps each tensor's own.
        """
        tensors = {name: t.to(dtype or t.dtype) for name, t in self.named_tensors().items()}
        files.write_adapter(Path(path), self.config, tensors, self.backbone)

    def named_tensors(self) -> dict[str, Tensor]:
        """All weights under their names on disk."""
        return {f"{path}.{name}": t for path, layer in self.layers.items() for name, t in files.to_disk(layer).items()}

    def fingerprint(self) -> str:
        """Identifies config and weights, the same for every dtype that holds the weights exactly."""
        digest = hashlib.sha256(json.dumps(self.config.identity(), sort_keys=True).encode())
        for name, tensor in sorted(self.named_tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().half().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def zero_state(self, rows: int = 1, *, device: torch.device | str | None = None) -> MemoryState:
        """An empty memory for `rows` sessions."""
        return MemoryState.zeros(rows, len(self.paths), self.config.num_state_heads, self.config.rank, device=device)

    def sites_in(self, backbone: nn.Module) -> dict[str, AttentionSite]:
        """The attention modules of `backbone` that this adapter's layers belong to.

        Raises:
            FingerprintError: the adapter was made for another kind of backbone.
            AdapterError: module paths or shapes do not match.
        """
        found = backbone_fingerprint(backbone)
        if self.backbone is not None and self.backbone != found:
            raise FingerprintError(
                f"this adapter was made for backbone {self.backbone}, the model at hand is {found}: load the model it "
                "was made for, or train an adapter for this one"
            )
        sites = find_attention(backbone)
        for path, layer in self.layers.items():
            if path not in sites:
                raise AdapterError(
                    f"the adapter has a layer for {path}, but the backbone's attention modules are "
                    f"{next(iter(sites))} … {list(sites)[-1]}: the adapter belongs to another backbone"
                )
            if sites[path].shape != layer.shape:
                raise AdapterError(f"{path}: the adapter is for {layer.shape}, the backbone has {sites[path].shape}")
        return {path: sites[path] for path in self.paths}


def backbone_fingerprint(backbone: nn.Module) -> str:
    """Architecture and sizes of a backbone, in words that stay the same over dtypes and quantisation."""
    return architecture(cast("PreTrainedConfig", backbone.config))


def architecture(config: PreTrainedConfig) -> str:
    """`backbone_fingerprint` of a backbone that has this config."""
    config = config.get_text_config()
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return (
        f"{config.model_type}-{config.num_hidden_layers}x{config.hidden_size}"
        f"-{config.num_attention_heads}q{kv_heads}kv-v{config.vocab_size}"
    )


def _targets(config: DeltaMemConfig, sites: dict[str, AttentionSite]) -> dict[str, AttentionSite]:
    if config.target_layers is None:
        return sites
    missing = set(config.target_layers) - {s.layer for s in sites.values()}
    if missing:
        raise AdapterError(
            f"target_layers names {sorted(missing)}, but the backbone has attention in layers "
            f"{sorted(s.layer for s in sites.values())}"
        )
    return {path: site for path, site in sites.items() if site.layer in config.target_layers}


def _build_layer(path: str, config: DeltaMemConfig, tensors: dict[str, Tensor]) -> DeltaMemLayer:
    layer = DeltaMemLayer(config, files.shape_of(path, tensors))
    files.from_disk(path, layer, tensors)
    return layer
