"""The adapters that ship with the package."""

from importlib.resources import files
from pathlib import Path

from deltamem_agents.errors import AdapterError, BackboneError

DEFAULT_ADAPTERS = {"bundled": "smollm2-135m-instruct"}


def default_adapter_path(model: str | Path) -> Path:
    """Folder of the adapter that ships for `model`.

    Raises:
        AdapterError: none ships for this model.
        BackboneError: the model is a folder that isn't there.
    """
    name = DEFAULT_ADAPTERS.get(str(model))
    if name is None and str(model).startswith(("/", ".", "~")) and not Path(model).is_dir():
        raise BackboneError(
            f"there is no folder {model}: expected a model's folder, a hub id like owner/name, or bundled"
        )
    if name is None:
        raise AdapterError(
            f"no adapter ships for {model}: name one, a folder or hub id (adapter=…, on the command line --adapter), "
            f"or train one (a default exists for {', '.join(DEFAULT_ADAPTERS)})"
        )
    return Path(str(files("deltamem_agents") / "adapters" / name))
