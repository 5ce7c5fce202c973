"""Loading models: what is missing, damaged or of another kind is said, and nothing is made up."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltamem_agents.backbone.load import context_length, end_tokens, load_backbone, tokenizer_fingerprint
from deltamem_agents.errors import BackboneError, UnsupportedArchitectureError
from tests.builders import tiny
from tests.chat import byte_tokenizer, chat_backbone

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    chat_backbone().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def change(**values: object) -> Damage:
    def act(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return act


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


DAMAGES: list[tuple[Damage, type[BackboneError], str]] = [
    (lambda folder: (folder / "model.safetensors").unlink(), BackboneError, "model of .*no file named"),
    (write("model.safetensors", b"x" * 100), BackboneError, "SafetensorError"),
    (truncate, BackboneError, "SafetensorError"),
    (write("config.json", b"{"), BackboneError, "not a valid JSON"),
    (lambda folder: (folder / "config.json").unlink(), UnsupportedArchitectureError, "model_type"),
    (write("tokenizer.json", b"{"), BackboneError, "the tokenizer of"),
    (change(num_hidden_layers=3), BackboneError, r"no weights for 9 parameters.*model\.layers\.2.*would be random"),
    (change(hidden_size=64), BackboneError, "could not be loaded"),
    (change(model_type="nope"), UnsupportedArchitectureError, "nope"),
    (change(model_type="vit"), UnsupportedArchitectureError, "not a causal LM"),
]


@pytest.mark.parametrize(("damage", "error", "says"), DAMAGES)
def test_damaged_folders(
    damage: Damage, error: type[BackboneError], says: str, sound: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sound, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(error, match=f"(?s){says}"):
        load_backbone(folder)


@pytest.mark.parametrize(
    "options", [{"device": "nowhere"}, {"dtype": "float33"}, {"model_kwargs": {"no_such_option": 1}}]
)
def test_options_that_transformers_does_not_know(options: dict[str, object], sound: Path) -> None:
    with pytest.raises(BackboneError, match="could not be loaded"):
        load_backbone(sound, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [False, True])
def test_a_sound_folder_is_loaded_ready_for_inference(tied: bool, tmp_path: Path) -> None:
    saved = chat_backbone(tie_word_embeddings=tied)
    saved.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    backbone, tokenizer = load_backbone(str(tmp_path), device="cpu")
    assert not backbone.training
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), backbone.parameters(), strict=True))
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(byte_tokenizer())
    assert tokenizer.chat_template == byte_tokenizer().chat_template


def test_the_dtype_is_the_checkpoints_own_or_the_callers(sound: Path) -> None:
    assert load_backbone(sound)[0].dtype == torch.float32
    assert load_backbone(sound, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_context_length_and_ends() -> None:
    backbone = chat_backbone(context=77)
    assert context_length(backbone) == 77
    assert end_tokens(backbone, byte_tokenizer()) == {2}
    assert backbone.generation_config is not None
    backbone.generation_config.eos_token_id = [7, 8]
    assert end_tokens(backbone, byte_tokenizer()) == {2, 7, 8}
    endless = tiny("Mamba")
    del endless.config.max_position_embeddings
    with pytest.raises(UnsupportedArchitectureError, match=r"max_position_embeddings=None.*set it"):
        context_length(endless)


def test_a_tokenizer_comes_from_where_its_model_does(sound: Path, tmp_path: Path) -> None:
    """Two revisions in a hub's cache, with templates of their own."""
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    for revision, commit in (("main", "1" * 40), ("v2", "2" * 40)):
        (repository / "refs" / revision).write_text(commit)
        folder = shutil.copytree(sound, repository / "snapshots" / commit / "inner")
        tokenizer = copy.deepcopy(byte_tokenizer())
        tokenizer.chat_template = f"{{# {revision} #}}"
        tokenizer.save_pretrained(folder)
    where = {"cache_dir": tmp_path, "local_files_only": True, "subfolder": "inner"}
    for revision in ("main", "v2"):
        _, loaded = load_backbone("owner/name", model_kwargs={"revision": revision, **where})
        assert loaded.chat_template == f"{{# {revision} #}}"
    with pytest.raises(BackboneError, match="could not be loaded"):
        load_backbone("owner/name", model_kwargs={"revision": "v3", **where})
