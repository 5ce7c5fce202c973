"""The adapters that ship with the package, and which of them is a model's."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from transformers import AutoConfig

from deltamem_agents.adapter.adapter import architecture
from deltamem_agents.adapter.files import CONFIG_FILE
from deltamem_agents.adapter.made_for import MadeFor
from deltamem_agents.adapter.named import located
from deltamem_agents.errors import AdapterError

SHIPPED = Path(str(files("deltamem_agents") / "adapters"))
"""A folder each, with a `made_for.json`: a new one is found by being there."""
BUNDLED = "bundled"
WHAT_TO_DO = (
    "Name an adapter, a folder or hub id (adapter=…, on the command line --adapter), or train one (deltamem train)"
)


@dataclass(frozen=True, slots=True)
class ShippedAdapter:
    """One of the adapters that ship."""

    folder: Path
    backbone: str
    """Architecture and sizes of its model, as `backbone_fingerprint` has them."""
    made_for: MadeFor

    @property
    def model(self) -> str:
        """The hub id of its model."""
        return self.made_for.models[0]


def shipped_adapters(among: Path = SHIPPED) -> Iterator[ShippedAdapter]:
    """All that ship, by name.

    Args:
        among: the folder that they are in.

    Raises:
        AdapterError: one of them doesn't say what it is for.
    """
    for config in sorted(among.glob(f"*/{CONFIG_FILE}")):
        backbone = str(json.loads(config.read_text(encoding="utf-8"))["backbone"])
        yield ShippedAdapter(config.parent, backbone, MadeFor.read(config.parent))


def default_adapter_path(model: str | Path, *, among: Path = SHIPPED) -> Path:
    """Folder of the adapter that ships for `model`.

    A folder is known by its config and a sample of its weights, whatever it is called; a hub id by itself. Nothing is
    loaded or fetched.

    Args:
        model: "bundled", a folder, or a hub id.
        among: the folder that adapters are looked for in.

    Raises:
        AdapterError: none ships for this model: says why, and which do.
        BackboneError: the model is a folder that isn't there.
    """
    shipped = list(shipped_adapters(among))
    name = str(model)
    folder = Path(located(model))
    if name != BUNDLED and folder.is_dir():
        return _for_folder(folder, shipped)
    for adapter in shipped:
        if name.lower() in (known.lower() for known in adapter.made_for.models):
            return adapter.folder
    raise _none_for(name, "it is none of their names", shipped)


def _for_folder(model: Path, shipped: list[ShippedAdapter]) -> Path:
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        found = architecture(config)
    except Exception as error:  # transformers raises from many trees for what is in a config
        reason = " ".join(str(error).split())
        raise _none_for(str(model), f"its config.json cannot be read as a causal LM's: {reason}", shipped) from error
    alike = [adapter for adapter in shipped if adapter.backbone == found]
    if not alike:
        raise _none_for(str(model), f"it is a {found}", shipped)
    reasons = list[str]()
    for adapter in alike:
        try:
            deviation = adapter.made_for.deviation(model)
        except AdapterError as error:
            reasons.append(f"it is built as {adapter.model}, but {error}")
            continue
        if deviation:
            warnings.warn(
                f"{model} is taken for a copy of {adapter.model}: its norms are the same, and its other weights "
                f"{deviation:.1%} off, as they are between copies that were quantised differently. If it is a "
                "fine-tune, see what the adapter still recalls (deltamem evaluate recall), or train one of its own",
                stacklevel=4,
            )
        return adapter.folder
    raise _none_for(str(model), "; ".join(reasons), shipped)


def _none_for(model: str, why: str, shipped: list[ShippedAdapter]) -> AdapterError:
    known = ", ".join(f"{adapter.folder.name} for {' or '.join(adapter.made_for.models)}" for adapter in shipped)
    return AdapterError(f"no adapter ships for {model}: {why}. Those that ship: {known or 'none'}. {WHAT_TO_DO}")
