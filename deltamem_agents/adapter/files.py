"""Adapter files: ours (safetensors and JSON), and the published format."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltamem_agents.adapter.published import config_from_published
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import AdapterError
from deltamem_agents.layer import DeltaMemLayer, LayerShape

CONFIG_FILE = "delta_mem_config.json"
WEIGHTS_FILE = "delta_mem_adapter.safetensors"
PUBLISHED_WEIGHTS_FILE = "delta_mem_adapter.pt"
RUNS_ADAPTER, RUNS_FILES = "adapter", ("checkpoint.pt", "log.jsonl")
"""In the folder of a training run: its adapter, once it is finished, and what is there before."""
FORMAT = "deltamem-agents/2"
FORMAT_WITHOUT_GATES = "deltamem-agents/1"
"""Before keys saw the token before and reads had gates: its configs know nothing of them."""

PROJECTIONS = {
    "q": "memory_q_proj",
    "k": "memory_k_proj",
    "v": "memory_v_proj",
    "beta": "beta_proj",
    "lambda": "lambda_proj",
    "shift": "memory_k_shift_proj",
    "gate": "read_gate_proj",
}
"""Names on disk of what `in_proj` packs; the last two are ours, the others are published ones."""


def read_adapter(path_or_hub_id: str | Path) -> tuple[DeltaMemConfig, dict[str, Tensor], str | None]:
    """Reads a folder or hub repository: the config, float32 tensors by name, and the backbone it was made for.

    The folder of a training run stands for the adapter in it.

    Raises:
        AdapterError: a file is missing, unreadable, foreign, or from another save than the other one.
        ConfigError: options that this package does not serve.
    """
    folder = _resolve(path_or_hub_id)
    try:
        data = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _no_adapter(folder) from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder / CONFIG_FILE} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise AdapterError(f"{folder / CONFIG_FILE} holds a {type(data).__name__}, expected an object")
    source = str(folder / CONFIG_FILE)
    if "format" not in data:
        return config_from_published(data, source=source), _read_weights(folder / PUBLISHED_WEIGHTS_FILE), None
    if data["format"] not in (FORMAT, FORMAT_WITHOUT_GATES):
        raise AdapterError(f"{folder} has format {data['format']!r}, expected {FORMAT!r}: it needs another version")
    if data.keys() | {"weights"} != {"format", "backbone", "weights", "config"}:
        raise AdapterError(f"{source} has keys {sorted(data)}, expected format, backbone, weights and config")
    tensors = _read_weights(folder / WEIGHTS_FILE)
    if "weights" in data and (found := _sha256(folder / WEIGHTS_FILE)) != data["weights"]:
        raise AdapterError(
            f"{folder / WEIGHTS_FILE} has sha256 {found}, {CONFIG_FILE} expects {data['weights']}: the file was "
            "changed, or a save was cut off between the two; save or fetch the adapter again"
        )
    config = data["config"]
    if data["format"] == FORMAT_WITHOUT_GATES and isinstance(config, dict):
        config = {"key_shift": False, "read_gate": "off", "gate_floor": 0.0} | config
    return DeltaMemConfig.parse(config, source=source), tensors, cast("str | None", data["backbone"])


def _resolve(path_or_hub_id: str | Path) -> Path:
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        inside = folder / RUNS_ADAPTER
        return inside if inside.is_dir() and not (folder / CONFIG_FILE).exists() else folder
    name = str(path_or_hub_id)
    if isinstance(path_or_hub_id, Path) or name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise AdapterError(f"no adapter at {name}: expected a folder with {CONFIG_FILE}, or a hub id like owner/name")
    try:
        patterns = [CONFIG_FILE, WEIGHTS_FILE, PUBLISHED_WEIGHTS_FILE]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises from several unrelated trees
        raise AdapterError(
            f"{name} is not a local folder, and could not be fetched as a hub id ({type(error).__name__}: {error}): "
            "check the name and the network, or give a folder"
        ) from error


def _no_adapter(folder: Path) -> AdapterError:
    if any((folder / file).exists() for file in RUNS_FILES):
        return AdapterError(
            f"{folder} is a training run without a finished adapter: go on with deltamem train, or name another folder"
        )
    return AdapterError(f"{folder} has no {CONFIG_FILE}: it is not a delta-mem adapter")


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise AdapterError(f"{path.parent} has a {CONFIG_FILE} that goes with {path.name}, but no such file")
    published = path.name == PUBLISHED_WEIGHTS_FILE
    content: object
    try:  # weights_only: nothing that a pickle asks for is run
        content = torch.load(path, map_location="cpu", weights_only=True) if published else load_file(path)
    except Exception as error:  # torch.load raises from many trees, pickle's among them
        raise AdapterError(f"{path} cannot be read as a plain dict of tensors: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise AdapterError(f"{path} does not hold a flat dict of tensors")
    odd = sorted(f"{name} {t.dtype}" for name, t in content.items() if not t.is_floating_point())
    if odd:
        raise AdapterError(f"{path} holds tensors that are not floating-point numbers: {odd}")
    return {str(name): tensor.float() for name, tensor in content.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_adapter(path: Path, config: DeltaMemConfig, tensors: dict[str, Tensor], backbone: str | None) -> None:
    """Writes both files into a temporary folder first, then moves them into place.

    A crash before the first move leaves the old files whole; one between the two moves is found by `read_adapter`.

    Raises:
        AdapterError: a tensor holds values that are not finite, or that the storage dtype cannot hold; or the folder
            cannot be written.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{name} as {tensor.dtype} holds values that are not finite: not saved")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path, prefix=".saving-") as folder:
            staging = Path(folder)
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, staging / WEIGHTS_FILE)
            data = {
                "format": FORMAT,
                "backbone": backbone,
                "weights": _sha256(staging / WEIGHTS_FILE),
                "config": config.model_dump(mode="json"),
            }
            (staging / CONFIG_FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
            (staging / WEIGHTS_FILE).chmod((staging / CONFIG_FILE).stat().st_mode)  # safetensors makes it private
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                os.replace(staging / name, path / name)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"the adapter cannot be saved in {path}: {error}") from error


def by_layer(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Groups `<module path>.<name>` by module path, in order of depth."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, short = name.rpartition(".")
        layers.setdefault(path, {})[short] = tensor
    return dict(sorted(layers.items(), key=lambda item: [int(p) if p.isdigit() else -1 for p in item[0].split(".")]))


def shape_of(path: str, tensors: dict[str, Tensor]) -> LayerShape:
    """Sizes of the attention module that a layer's tensors were made for."""
    try:
        hidden = tensors["memory_q_proj"].shape[1]
        q, k, v, o = (tensors[f"delta_{p}_proj"].shape[0] for p in "qkvo")
    except (KeyError, IndexError) as error:
        expected = "memory_q_proj [R, H] and delta_{q,k,v,o}_proj [out, R]"
        raise AdapterError(f"{path} has tensors {sorted(tensors)}, expected at least {expected}: {error}") from error
    return LayerShape(hidden, q, k, v, o)


def to_disk(layer: DeltaMemLayer) -> dict[str, Tensor]:
    """A layer's weights under their published names, and our own; inactive corrections are zeros."""
    config, shape = layer.config, layer.shape
    present = {block: rows for block, rows in layer.block.items() if rows.stop > rows.start}
    tensors = {PROJECTIONS[block]: layer.in_proj[rows] for block, rows in present.items()}
    tensors |= dict(zip(["beta_bias", "lambda_bias"], torch.split(layer.gate_bias, config.gates), strict=False))
    for p in ("q", "k", "v", "o"):
        active = p in layer.delta
        tensors[f"delta_{p}_proj"] = layer.delta[p] if active else layer.in_proj.new_zeros(shape.out(p), config.width)
    for name in ("delta_scale_raw", "delta_o_rmsnorm_weight", "read_gate_bias", "read_gate_match"):
        if hasattr(layer, name):
            tensors[name] = getattr(layer, name)
    return tensors


@torch.no_grad()
def from_disk(path: str, layer: DeltaMemLayer, tensors: dict[str, Tensor]) -> None:
    """Fills a layer from tensors under their published names, after checking every name and shape.

    Raises:
        AdapterError: lists what is missing, unexpected or misshapen.
    """
    slots = to_disk(layer)
    missing, unexpected = sorted(slots.keys() - tensors.keys()), sorted(tensors.keys() - slots.keys())
    if missing or unexpected:
        raise AdapterError(f"{path}: missing tensors {missing}, unexpected tensors {unexpected}")
    wrong = {n: (list(tensors[n].shape), list(s.shape)) for n, s in slots.items() if tensors[n].shape != s.shape}
    if wrong:
        raise AdapterError(f"{path}: misshapen tensors, found and expected: {wrong}")
    for name, slot in slots.items():
        if not torch.isfinite(tensors[name]).all():
            raise AdapterError(f"{path}.{name} holds values that are not finite: the file is damaged")
        slot.copy_(tensors[name])
