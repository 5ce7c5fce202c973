"""Which model's weights an adapter was made for: a sample of them beside the adapter, known again in any copy.

Of a layer in the middle the sample holds the norms' and biases' first weights, and of each matrix the largest
magnitudes of blocks of 32. Those outlast what a copy may go through: bfloat16, float16 and float32 differ by less than
a rounding, and the quantisations of GGUF that keep a scale for 32 weights (Q4_0 to Q8_0) keep each block's largest one.
A fine-tune moves them.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deltamem_agents.errors import AdapterError

MADE_FOR_FILE = "made_for.json"
BLOCK = 32
ROWS = 2
"""Of each matrix, the first."""
LENGTH = 128
"""Of each vector, from its start."""
ROUNDING = 0.6
"""How far copies may differ, in bfloat16's units in the last place: half of one, and some room."""
UNDERFLOW = 2.0**-24
"""What float16 makes nothing of."""

_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"


class MadeFor(BaseModel):
    """What is written beside an adapter that ships."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...]
    """Hub ids, and other names, of the model; the first is what it is called."""
    sample: dict[str, tuple[float, ...]]
    """Weights by their tensor's name, to four digits."""
    quantised: float = 0.0
    """How far the matrices may be off on average, as a share, where the sample is of a copy that was quantised in a
    way that keeps no weight (GGUF's K types); the vectors, which such copies keep, must agree all the same. 0: not at
    all."""

    @classmethod
    def read(cls, adapter: Path) -> Self:
        """What stands in an adapter's folder.

        Raises:
            AdapterError: it is missing or malformed.
        """
        path = adapter / MADE_FOR_FILE
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise AdapterError(
                f"{path} cannot be read ({error}): expected the names of the model that the adapter is for, and a "
                "sample of its weights; write it with deltamem_agents.adapter.made_for.record"
            ) from error

    def deviation(self, model: Path) -> float:
        """How far off the weights in a folder are: 0 for a copy; above that, a share as in `quantised`.

        Raises:
            AdapterError: says which weights are others, or missing.
        """
        found = _read(model, self.sample)
        off = list[Tensor]()
        for name, values in self.sample.items():
            weights, expected = found.get(name), torch.tensor(values)
            if weights is None:
                raise AdapterError(f"it has no {name}")
            got = _sampled(weights)
            if got.shape != expected.shape:
                raise AdapterError(f"its {name} is of another shape: {list(weights.shape)}")
            away = (got - expected).abs()
            unit = torch.exp2(expected.abs().clamp_min(UNDERFLOW).log2().floor() - 7)
            others = int((~(away <= ROUNDING * unit + UNDERFLOW)).sum())  # NaN too
            if others and (weights.dim() == 1 or not self.quantised):
                raise AdapterError(
                    f"its weights are others, as a fine-tune's are: {others} of {len(values)} sampled of {name}"
                )
            if others:
                off.append(away / expected.abs().clamp_min(UNDERFLOW))
        deviation = float(torch.cat(off).mean()) if off else 0.0
        if not deviation <= self.quantised:
            raise AdapterError(
                f"its weights are others: {deviation:.1%} off on average, where quantising explains "
                f"{self.quantised:.0%}"
            )
        return deviation


def record(
    adapter: str | Path,
    model: str | Path,
    *,
    models: Iterable[str],
    without: Collection[str] = (),
    quantised: float = 0.0,
) -> Path:
    """Writes into an adapter's folder which model it is for, so that it is found when it ships.

    Args:
        adapter: its folder.
        model: a folder of the model, with its weights as safetensors.
        models: hub ids of it, and other names.
        without: parts of the names of tensors that are left out of the sample: of a GGUF file of the K types, whose
            rows of a length that 256 doesn't divide are in a type that keeps a weight, those that are not.
        quantised: see `MadeFor`; 0.04 where all matrices were dequantised from Q4_K and Q6_K, which are off by 1 to 2 %
            on average. Then a light fine-tune isn't told from the original, and a warning says so.

    Raises:
        AdapterError: the weights cannot be read, or no layer in them is made of matrices and vectors.
    """
    folder = Path(model)
    names = [name for name in _names(folder) if not any(part in name for part in without)]
    layers = {int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))}
    middle = f".{sorted(layers)[len(layers) // 2]}." if layers else None
    tensors = _read(folder, [name for name in names if middle is not None and middle in name])
    sample = {name: _sampled(tensor) for name, tensor in sorted(tensors.items()) if _can_be_sampled(tensor)}
    if not sample:
        raise AdapterError(f"{folder} has no layers that can be sampled: expected a causal LM's weights as safetensors")
    digits = {name: tuple(float(f"{value:.4g}") for value in values.tolist()) for name, values in sample.items()}
    made = MadeFor(models=tuple(models), sample=digits, quantised=quantised)
    path = Path(adapter) / MADE_FOR_FILE
    lines = [f'    {json.dumps(name)}: {json.dumps(values)}' for name, values in made.sample.items()]
    head = f'{{\n  "models": {json.dumps(made.models)},\n  "quantised": {made.quantised},\n  "sample": {{\n'
    path.write_text(head + ",\n".join(lines) + "\n  }\n}\n", encoding="utf-8")
    return path


def _can_be_sampled(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and (tensor.dim() == 1 or (tensor.dim() == 2 and tensor.shape[-1] % BLOCK == 0))


def _sampled(tensor: Tensor) -> Tensor:
    """A vector's first weights; of a matrix the largest magnitude of each block in its first rows. Float32, flat."""
    if tensor.dim() == 1:
        return tensor[:LENGTH].float()
    if tensor.dim() != 2 or tensor.shape[-1] % BLOCK:
        return torch.empty(0)
    return tensor[:ROWS].float().reshape(-1, BLOCK).abs().amax(-1)


def _files(folder: Path) -> Mapping[str, str] | None:
    """Which file each tensor of a model is in; None: all are in one."""
    try:
        listed = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"its {_INDEX} cannot be read: {error}") from error
    return {str(name): str(file) for name, file in dict(listed).items()}


def _names(folder: Path) -> list[str]:
    files = _files(folder)
    if files is not None:
        return sorted(files)
    with _opened(folder / _WEIGHTS) as weights:
        return sorted(weights.keys())


def _read(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of a model, of matrices the first rows; those that it lacks are left out."""
    files, found = _files(folder), dict[str, Tensor]()
    for name in names:
        file = _WEIGHTS if files is None else files.get(name)
        if file is None:
            continue
        with _opened(folder / file) as weights:
            if name in weights.keys():  # noqa: SIM118 # it can't be asked otherwise
                stored = weights.get_slice(name)
                found[name] = stored[:ROWS] if len(stored.get_shape()) == 2 else weights.get_tensor(name)
    return found


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise AdapterError(f"it has no {path.name}, in which its weights could be looked at")
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"its {path.name} cannot be read: {error}") from error
