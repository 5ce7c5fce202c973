"""What a machine has for the memory, what that means, and what would mend what is missing."""

import os
import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from pydantic import BaseModel, ConfigDict

from deltamem_agents.errors import DeltaMemError

PACKAGE = "deltamem-agents"
State = Literal["fine", "absent", "wrong"]


class Finding(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    """machine, models, stores or extras."""
    name: str
    """What was looked at."""
    found: str
    """What there is."""
    means: str = ""
    """What follows, or what to do."""
    state: State = "fine"
    """Whether it is there, is not, which may be as it should, or is broken."""


def findings(store: str | None = None) -> Iterator[Finding]:
    """Looks at the machine, the models and adapters here, the store and the extras; nothing is fetched or changed.

    Args:
        store: a store to look into; None: the default one, if there is one.
    """
    yield from _machine()
    yield from _models()
    yield _store(store)
    yield from extras(metadata.requires(PACKAGE) or [], _installed)


def _machine() -> Iterator[Finding]:
    import psutil
    import torch

    from deltamem_agents.ops.native import native_available
    from deltamem_agents.train.machine import training_dtype

    versions = ", ".join(f"{name} {_installed(name)}" for name in ("torch", "transformers"))
    yield Finding(part="machine", name="Python", found=f"{platform.python_version()}; {versions}")
    amx = torch.cpu._is_amx_tile_supported()
    bfloat16 = training_dtype("auto", torch.device("cpu")) is torch.bfloat16
    yield Finding(
        part="machine",
        name="processor",
        found=f"{os.cpu_count()} cores, {torch.get_num_threads()} used by torch; "
        f"{'with' if bfloat16 else 'no'} bfloat16, {'with' if amx else 'no'} AMX",
        means="training takes bfloat16, about twice as fast"
        if bfloat16
        else "training takes float32: bfloat16 would be emulated",
    )
    yield _gpus()
    memory = psutil.virtual_memory()
    yield Finding(
        part="machine",
        name="memory",
        found=f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        means=f"room for models of about {memory.available * 0.8 / 2e9:.1f}B parameters in bfloat16, "
        f"{memory.available * 0.8 / 4e9:.1f}B in float32",
    )
    if native_available():
        yield Finding(part="machine", name="compiled loops", found=f"numba {_installed('numba')}")
    else:
        yield Finding(
            part="machine",
            name="compiled loops",
            found="numba cannot be imported",
            means="memory runs in torch, slower: pip install numba",
            state="wrong",
        )


def _gpus() -> Finding:
    import torch

    if torch.cuda.is_available():
        each = []
        for number in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(number)
            kind = "bfloat16" if gpu.major >= 8 else "float16 only"
            each.append(f"cuda:{number} {gpu.name}, {gpu.total_memory / 1e9:.0f} GB, {kind}")
        return Finding(part="machine", name="GPU", found="; ".join(each), means="models go to cuda:0 by default")
    if torch.backends.mps.is_available():
        found, means = "Apple's, by MPS", "not taken by itself: --device mps, which has not been tried"
    elif torch.version.cuda is None:
        found, means = "none that torch sees", "torch is a CPU build: with a GPU, install one with CUDA"
    else:
        found, means = "none", "models run on the processor"
    return Finding(part="machine", name="GPU", found=found, means=means, state="absent")


def _models() -> Iterator[Finding]:
    from deltamem_agents.adapter.default import shipped_adapters
    from deltamem_agents.backbone.bundled import MODEL_ID, bundled_is_cached

    cached = bundled_is_cached()
    yield Finding(
        part="models",
        name="bundled",
        found=f"{MODEL_ID.partition('/')[2]}, {'here' if cached else 'not fetched yet'}",
        means="" if cached else "93 MB at its first use; now: deltamem pull",
        state="fine" if cached else "absent",
    )
    for adapter in shipped_adapters():
        found = f"{adapter.folder.name}, for {' or '.join(adapter.made_for.models)}"
        yield Finding(part="models", name="adapter that ships", found=found)
    models, adapters = hub_cache()
    for name, cached_here in (("models of the hub", models), ("adapters of the hub", adapters)):
        yield Finding(
            part="models",
            name=name,
            found=", ".join(cached_here) or "none in the cache",
            means="" if cached_here else "fetched when named by id; folders work too",
            state="fine" if cached_here else "absent",
        )


def hub_cache(folder: Path | None = None) -> tuple[list[str], list[str]]:
    """Ids of the models and of the adapters that Hugging Face's cache holds, or another folder like it."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = [r for r in scan_cache_dir(folder).repos if r.repo_type == "model"]
    except CacheNotFound:
        return [], []
    files = {r.repo_id: {f.file_name for v in r.revisions for f in v.files} for r in repositories}
    adapters = sorted(name for name, found in files.items() if "delta_mem_config.json" in found)
    return sorted(name for name, found in files.items() if "config.json" in found), adapters


def _store(spec: str | None) -> Finding:
    from deltamem_agents.cli.stored import home, open_existing, store_option
    from deltamem_agents.store.opening import default_path

    default = default_path()
    name = "default store" if spec is None else "store"
    if spec is None and not default.exists():
        means = "made by the first `deltamem chat` or `deltamem serve`"
        return Finding(part="stores", name=name, found=f"{home(default)}: not there yet", means=means, state="absent")
    where = home(default) if spec is None else spec.rpartition("@")[2] if "://" in spec else spec
    try:
        with open_existing(str(default) if spec is None else spec) as store:
            many = len(store.sessions(limit=1000))
    except DeltaMemError as error:
        return Finding(part="stores", name=name, found=f"{where}: cannot be used", means=str(error), state="wrong")
    sessions = f"{many} session{'s' * (many != 1)}" if many < 1000 else "1,000 sessions or more"
    means = f"see `deltamem sessions list{store_option(spec)}`"
    return Finding(part="stores", name=name, found=f"{where}: {sessions}", means=means)


def extras(requirements: list[str], installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """What each extra of a package brings, and whether it is here.

    Args:
        requirements: as the package's metadata have them.
        installed: gives a package's version, or None.
    """
    wanted: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, requirements):
        for name in _extras_of(requirement) if requirement.name != PACKAGE else []:
            wanted.setdefault(name, []).append(requirement)
    for name, packages in sorted(wanted.items()):
        versions = {each.name: installed(each.name) for each in packages}
        lacking = [each for each in packages if not _fits(each, versions[each.name])]
        found = ", ".join(f"{package} {version or '–'}" for package, version in versions.items())
        means = f"pip install '{PACKAGE}[{name}]'" if lacking else ""
        if lacking and all(versions.values()):
            wants = ", ".join(f"{package.name}{package.specifier}" for package in lacking)
            yield Finding(part="extras", name=name, found=found, means=f"wants {wants}: {means}", state="wrong")
        else:
            yield Finding(part="extras", name=name, found=found, means=means, state="absent" if lacking else "fine")


def _fits(wanted: Requirement, version: str | None) -> bool:
    return version is not None and wanted.specifier.contains(version, prereleases=True)


def _extras_of(requirement: Requirement) -> list[str]:
    """The extras that bring a requirement; "all" is only a name for most of them."""
    marker = str(requirement.marker or "")
    if "extra" not in marker:
        return []
    name = marker.rpartition("extra == ")[2].strip("\"'() ")
    return [] if name == "all" else [name]


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
