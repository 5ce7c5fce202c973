"""The adapters that ship with the package."""

from importlib.resources import files
from pathlib import Path

from deltamem_agents.errors import AdapterError

DEFAULT_ADAPTERS = {"bundled": "smollm2-135m-instruct"}


def default_adapter_path(model: str | Path) -> Path:
    """Folder of the adapter that ships for `model`.

    Raises:
        AdapterError: none ships for this model.
    """
    name = DEFAULT_ADAPTERS.get(str(model))
    if name is None:
        raise AdapterError(
            f"no adapter ships for {model}: pass adapter=…, a folder or hub id, or train one (a default exists for "
            f"{', '.join(DEFAULT_ADAPTERS)})"
        )
    return Path(str(files("deltamem_agents") / "adapters" / name))
