"""A run's checkpoint: one file, whole or not there, with all that an exact continuation needs."""

import io
import json
import os
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from deltamem_agents.adapter import DeltaMemAdapter
from deltamem_agents.errors import AdapterError, ConfigError, TrainingError
from deltamem_agents.layer import DeltaMemLayer
from deltamem_agents.train.recipe import Recipe

_FREE = {"checkpoint_every", "licence", "gradient_checkpointing", "model_kwargs"}
"""Fields that may change in the middle of a run: they decide where and how it computes, not what."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that changes while training."""

    recipe: str
    """As JSON."""
    step: int
    """Optimiser steps done."""
    position: int
    """The planned step it is at: ahead of `step` when stages ended early."""
    adapter: Mapping[str, Tensor]
    optimizer: Mapping[str, object]
    seconds: float
    """How long the steps took."""
    rng: tuple[object, ...]
    """Each process's `random.Random` state."""
    begun: int = 0
    """The planned step at which the optimiser knew nothing."""
    dtype: str = ""
    """What the backbone computed in."""

    def save(self, path: Path) -> None:
        """Replaces the file at once; an error leaves the old one whole.

        Raises:
            TrainingError: it cannot be written, as when the disk is full.
        """
        buffer = io.BytesIO()
        torch.save({name: getattr(self, name) for name in self.__slots__}, buffer)
        partial = path.with_suffix(".tmp")
        try:
            with partial.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            kept = "the last one is still whole" if path.exists() else "there is none yet"
            raise TrainingError(
                f"the checkpoint of step {self.step} cannot be written to {path} ({error}): {kept}; make room and run "
                "the same command again"
            ) from error

    @classmethod
    def load(cls, path: Path, recipe: Recipe) -> "Checkpoint":
        """Reads a checkpoint of this recipe.

        Raises:
            ConfigError: it is of another recipe: names the fields that differ.
            TrainingError: it is damaged, or none.
        """
        content = _read(path)
        try:
            saved = cls(**content)  # type: ignore[arg-type]
            old = Recipe.model_validate_json(saved.recipe)
        except (TypeError, ValidationError) as error:
            raise TrainingError(
                f"{path} is not a checkpoint of this version ({error}): choose another output folder, and name this "
                "file as init_adapter to go on from its weights"
            ) from error
        names = Recipe.model_fields.keys() - _FREE
        differing = sorted(name for name in names if getattr(old, name) != getattr(recipe, name))
        if differing:
            name = differing[0]
            raise ConfigError(
                f"{path} is of another recipe: {', '.join(differing)} differ, such as {name}: "
                f"{getattr(old, name)!r} there and {getattr(recipe, name)!r} here; choose another output folder "
                "(init_adapter goes on from its weights), or restore the recipe"
            )
        return saved


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a run was when it wrote its adapter: with that, it goes on where its checkpoint is gone."""

    step: int
    """Optimiser steps done."""
    position: int
    """The planned step it was at."""
    seconds: float
    """How long the steps took."""

    def save(self, folder: Path) -> None:
        """Writes it beside the adapter.

        Raises:
            TrainingError: it cannot be written.
        """
        path = folder / "adapter.json"
        try:
            path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"{path} cannot be written ({error}): make room and run the same command") from error

    @classmethod
    def load(cls, folder: Path) -> "Reached | None":
        """What a run in this folder reached; None where it has no adapter, and step 0 where nothing says more."""
        if not (folder / "adapter" / "delta_mem_config.json").exists():
            return None
        try:
            found = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
            return cls(int(found["step"]), int(found["position"]), float(found["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(0, 0, 0.0)


def initial_adapter(recipe: Recipe, backbone: nn.Module) -> tuple[DeltaMemAdapter, range]:
    """The adapter a run starts from: fresh, or from the recipe's `init_adapter`.

    That one may have fewer state heads, and may have absorbed other roles: no weight depends on them.

    Returns:
        The adapter, and which of its state heads are fresh.

    Raises:
        ConfigError: that adapter has other options than the recipe.
        AdapterError: it doesn't fit the backbone, or cannot be read.
        TrainingError: it is a damaged checkpoint.
    """
    path, heads = recipe.init_adapter, recipe.adapter.num_state_heads
    adapter = DeltaMemAdapter.initialize(recipe.adapter, backbone, seed=recipe.seed)
    if path is None:
        return adapter, range(heads)
    found = _saved_adapter(path, recipe, backbone)
    free = {"num_state_heads", "absorb_roles"}
    differing = [n for n, value in found.config if value != getattr(recipe.adapter, n) and n not in free]
    if found.config.num_state_heads > heads:
        differing.append("num_state_heads")
    if differing:
        raise ConfigError(
            f"init_adapter {path} differs from the recipe's adapter in {', '.join(differing)}: make them the same; "
            "only absorb_roles may be others, and num_state_heads higher, in the recipe"
        )
    for old, new in zip(found.layers.values(), adapter.layers.values(), strict=True):
        copy_heads(old, new)
    return adapter, range(found.config.num_state_heads, heads)


@torch.no_grad()
def copy_heads(old: DeltaMemLayer, new: DeltaMemLayer) -> None:
    """Copies a layer's weights into the first state heads of one that has as many or more."""
    few = old.config
    for name, rows in old.block.items():
        start = new.block[name].start
        new.in_proj[start : start + rows.stop - rows.start] = old.in_proj[rows]
    kinds = 1 if few.couple_lambda else 2
    for kind in range(kinds):
        gates = old.gate_bias[kind * few.gates : (kind + 1) * few.gates]
        start = kind * new.config.gates
        new.gate_bias[start : start + few.gates] = gates
    for name, delta in old.delta.items():
        new.delta[name][:, : few.width] = delta
    if few.read_gate != "off":
        new.read_gate_bias[: few.num_state_heads] = old.read_gate_bias
    if few.read_gate == "match":
        new.read_gate_match[: few.num_state_heads, : few.width] = old.read_gate_match
    for name in ("delta_scale_raw", "delta_o_rmsnorm_weight"):
        if hasattr(old, name):
            getattr(new, name).copy_(getattr(old, name))


def _saved_adapter(path: Path, recipe: Recipe, backbone: nn.Module) -> DeltaMemAdapter:
    """The adapter of a folder, or of another run's checkpoint."""
    if not path.is_file():
        found = DeltaMemAdapter.from_pretrained(path)
        found.sites_in(backbone)
        return found
    content = _read(path)
    try:
        config = Recipe.model_validate_json(content["recipe"]).adapter  # type: ignore[arg-type]
        found = DeltaMemAdapter.initialize(config, backbone)
        found.load_state_dict(content["adapter"])  # type: ignore[arg-type]
    except (KeyError, RuntimeError, TypeError, ValidationError) as error:
        raise AdapterError(f"init_adapter {path} does not fit the recipe's adapter and model: {error}") from error
    return found


def rng_from(state: object) -> random.Random:
    """A generator in a state that went through a file."""
    assert isinstance(state, (tuple, list))
    version, internal, gauss = state
    rng = random.Random()
    rng.setstate((version, tuple(internal), gauss))
    return rng


def _read(path: Path) -> dict[str, object]:
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises from many trees, pickle's among them
        adapter = path.parent / "adapter"
        way_out = f"the adapter of {adapter}, with a new warm-up" if adapter.is_dir() else "the beginning"
        raise TrainingError(
            f"{path} cannot be read as a checkpoint, it may have been cut short ({error}): delete it, and the same "
            f"command goes on from {way_out}"
        ) from error
    if not isinstance(content, dict):
        raise TrainingError(f"{path} holds a {type(content).__name__}, expected a checkpoint")
    return content
