"""Half precision on a CPU: kept where the processor has instructions for it, widened where it hasn't."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from deltamem_agents.backbone import dtypes
from deltamem_agents.backbone.load import load_backbone
from tests.chat import byte_tokenizer, chat_backbone


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16])
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in half precision."""
    folder: Path = tmp_path_factory.mktemp("half")
    chat_backbone().to(request.param).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("instructions", [True, False])
def test_half_precision_stays_only_where_the_processor_has_instructions_for_it(
    instructions: bool, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "computes_bfloat16", lambda device: instructions)
    loaded, _ = load_backbone(half, device="cpu")
    saved, _ = load_backbone(half, device="cpu", dtype=loaded.config.dtype if instructions else torch.float32)
    assert (loaded.dtype == torch.float32) is not instructions
    assert loaded.dtype == saved.dtype
    for one, other in zip(loaded.parameters(), saved.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_type_that_is_named_is_taken(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "computes_bfloat16", lambda device: False)
    assert load_backbone(half, device="cpu", dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert load_backbone(half, device="cpu", model_kwargs={"dtype": torch.float16})[0].dtype == torch.float16


def test_without_the_memory_for_it_the_model_stays_as_it_is_and_says_so(
    half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "computes_bfloat16", lambda device: False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.warns(UserWarning, match=r"no instructions for b?float16.*the model stays as it is"):
        loaded, _ = load_backbone(half, device="cpu")
    assert loaded.dtype in dtypes.HALF
