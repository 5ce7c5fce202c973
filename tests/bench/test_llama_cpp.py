"""A model written as GGUF says in llama.cpp what it says in transformers; what is written can be read back."""

from pathlib import Path

import gguf
import pytest
import torch
from transformers import PreTrainedModel

from deltamem_agents.bench.llama_cpp import llama_cpp_available, llama_cpp_peer
from deltamem_agents.bench.llama_gguf import unwritable, write_gguf
from deltamem_agents.errors import BackboneError
from tests.builders import VOCABULARY, tiny

needs_llama_cpp = pytest.mark.skipif(not llama_cpp_available(), reason="llama-cpp-python isn't installed")
LIVELY: dict[str, object] = {"initializer_range": 0.2, "head_dim": 16, "intermediate_size": 64}
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]


def read(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a GGUF file, as floats."""
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)) for t in tensors}


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """The last of the tokens that are likeliest, the first being what the prompt's own forward says."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count + 1):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_file_holds_the_same_weights(tmp_path: Path) -> None:
    model = tiny(tie_word_embeddings=False, **LIVELY)
    write_gguf(model, tmp_path / "whole.gguf")
    write_gguf(model, tmp_path / "rounded.gguf", int8=True)
    whole, rounded, own = read(tmp_path / "whole.gguf"), read(tmp_path / "rounded.gguf"), model.state_dict()
    assert len(whole) == len(own)
    assert torch.equal(whole["blk.1.ffn_down.weight"], own["model.layers.1.mlp.down_proj.weight"])
    assert torch.equal(whole["output.weight"], own["lm_head.weight"])
    for name, tensor in whole.items():
        error = (rounded[name] - tensor).abs().max()
        assert error <= tensor.abs().max() / 127 if tensor.dim() == 2 else error == 0
    assert (tmp_path / "rounded.gguf").stat().st_size < 0.5 * (tmp_path / "whole.gguf").stat().st_size


def test_a_shared_embedding_is_written_once(tmp_path: Path) -> None:
    write_gguf(tiny(tie_word_embeddings=True), tmp_path / "tied.gguf")
    names = list(read(tmp_path / "tied.gguf"))
    assert "output.weight" not in names
    assert names.count("token_embd.weight") == 1


def test_other_models_are_refused_by_name() -> None:
    assert unwritable(tiny()) is None
    assert "qwen2" in str(unwritable(tiny("Qwen2")))
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    assert "linear" in str(unwritable(tiny(rope_parameters=scaled)))


@needs_llama_cpp
@pytest.mark.parametrize("options", [{"tie_word_embeddings": True}, {"attention_bias": True}], ids=["tied", "biases"])
def test_llama_cpp_says_the_same(options: dict[str, object], tmp_path: Path) -> None:
    model = tiny(**LIVELY, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(1))
    write_gguf(model, tmp_path / "model.gguf")
    expected = [greedy(model, prompt, 12) for prompt in PROMPTS]
    assert len({token for reply in expected for token in reply}) > 6
    with llama_cpp_peer(tmp_path / "model.gguf", length=20, threads=1) as start:
        alone = [start([prompt])(12)[0] for prompt in PROMPTS]
        together = start(PROMPTS)
        assert together(0) == [reply[0] for reply in expected]
        for count in range(1, 13):
            assert together(1) == [reply[count] for reply in expected]
        assert start(PROMPTS)(12) == [reply[12] for reply in expected]  # what was fed before is forgotten
    assert alone == [reply[12] for reply in expected]


@needs_llama_cpp
def test_int8_is_near(tmp_path: Path) -> None:
    """Rounding moves few of the likeliest tokens behind prompts."""
    model = tiny(**LIVELY)
    write_gguf(model, tmp_path / "model.gguf", int8=True)
    prompts = torch.randint(3, VOCABULARY, (16, 6), generator=torch.Generator().manual_seed(0)).tolist()
    with llama_cpp_peer(tmp_path / "model.gguf", length=8, threads=1) as start:
        said = start(prompts)(0)
    same = [token == greedy(model, prompt, 0)[0] for token, prompt in zip(said, prompts, strict=True)]
    assert sum(same) >= 12


@needs_llama_cpp
def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with (
        pytest.raises(BackboneError, match="cannot load"),
        llama_cpp_peer(tmp_path / "broken.gguf", length=8, threads=1),
    ):
        pass
