"""Which models are paths, and which are names."""

from pathlib import Path

from deltamem_agents.errors import BackboneError


def located(model: str | Path) -> str | Path:
    """A model's folder where it is a path, or the name as it was given.

    Args:
        model: a `Path`, or what begins with ".", "/" or "~", is a path; everything else is a name, such as a hub id,
            though a folder may be called so.

    Raises:
        BackboneError: there is no such folder.
    """
    if isinstance(model, str) and not model.startswith((".", "/", "~")):
        return model
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise BackboneError(
            f"there is no folder {model}: check the path; expected a model's folder with its config.json, a hub id "
            "like owner/name, or bundled"
        )
    return folder
