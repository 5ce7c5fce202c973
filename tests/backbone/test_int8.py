"""int8 weights on a CPU: what is rounded, what is not, what the model says then, and who goes without."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from deltamem_agents import DeltaMemEngine
from deltamem_agents.backbone.int8 import Int8Embedding, Int8Linear, kind_of_weights, quantized
from deltamem_agents.backbone.load import load_backbone
from deltamem_agents.errors import ConfigError
from tests.builders import adapted, tiny, tokens
from tests.chat import byte_tokenizer, chat_backbone, chat_model

FAMILIES = ("Llama", "Qwen2", "Qwen3", "Gemma3Text", "Phi3", "OPT")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    chat_backbone().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def rounded(backbone: PreTrainedModel) -> PreTrainedModel:
    """The naive way: the same rounding, kept wide, in torch's own layers."""
    model = copy.deepcopy(backbone)
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                if layer.weight is embedding.weight and type(embedding) is not nn.Embedding:
                    layer.weight = nn.Parameter(layer.weight.clone())  # a scaled embedding stays as it is
                scale = layer.weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
                layer.weight.copy_((layer.weight / scale).round() * scale)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_int8_says_what_the_rounded_one_says(family: str, tied: bool) -> None:
    backbone = tiny(family, tie_word_embeddings=tied)
    expected = rounded(backbone)
    narrow = quantized(copy.deepcopy(backbone))
    assert not any(type(layer) is nn.Linear for layer in narrow.modules())
    assert not isinstance(narrow.get_input_embeddings(), Int8Embedding) or tied
    ids = tokens(2, 40)
    with torch.inference_mode():
        torch.testing.assert_close(narrow(ids).logits, expected(ids).logits, atol=1e-4, rtol=1e-3)
        assert not torch.equal(expected(ids).logits, backbone(ids).logits)


def test_a_tied_output_layer_shares_its_bytes_with_the_embedding() -> None:
    narrow = quantized(tiny(tie_word_embeddings=True))
    embedding, output = narrow.get_input_embeddings(), narrow.get_output_embeddings()
    assert isinstance(embedding, Int8Embedding)
    assert isinstance(output, Int8Linear)
    assert embedding.weight.data_ptr() == output.weight.data_ptr()  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_from_and_computed_in_float32(dtype: torch.dtype) -> None:
    half = tiny().to(dtype)  # type: ignore[arg-type]
    narrow = quantized(copy.deepcopy(half))
    assert narrow.dtype == torch.float32
    with torch.inference_mode():
        expected = rounded(half.float())(tokens(1, 9)).logits  # type: ignore[no-untyped-call]
        torch.testing.assert_close(narrow(tokens(1, 9)).logits, expected, atol=1e-3, rtol=1e-2)


def test_gradients_pass_through_to_what_is_before() -> None:
    linear = nn.Linear(6, 4)
    narrow, x = quantized_linear(linear), torch.randn(3, 6, requires_grad=True)
    narrow(x).sum().backward()
    wide = narrow.weight.float() * narrow.scale.unsqueeze(1)
    torch.testing.assert_close(x.grad, wide.sum(0).expand(3, 6))
    with torch.no_grad():
        torch.testing.assert_close(narrow(x), x @ wide.t() + linear.bias)


def quantized_linear(linear: nn.Linear) -> Int8Linear:
    from deltamem_agents.ops.products import quantize_rows

    return Int8Linear(*quantize_rows(linear.weight), linear.bias)


def test_the_memory_sits_on_it_and_stays_float32() -> None:
    model = adapted(backbone=quantized(tiny()))
    out = model(tokens(2, 12))
    expected = adapted(backbone=rounded(tiny()))(tokens(2, 12))
    assert out.state.tensor.dtype == torch.float32
    torch.testing.assert_close(out.state.tensor, expected.state.tensor, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(out.logits, expected.logits, atol=1e-3, rtol=1e-3)


def test_an_engine_takes_the_option(folder: Path) -> None:
    adapter = chat_model().adapter
    with DeltaMemEngine.from_pretrained(folder, adapter=adapter, store=":memory:", weights="int8") as engine:
        assert any(isinstance(m, Int8Linear) for m in engine.model.backbone.modules())
        turn = engine.generate([{"role": "user", "content": "hello"}], session="a", max_new_tokens=4)
        assert turn.usage.completion_tokens > 0


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_another_type_beside_it_is_refused(folder: Path, dtype: torch.dtype | str) -> None:
    with pytest.raises(ConfigError, match=r'weights="int8" computes in float32, and dtype is .*float16'):
        load_backbone(folder, device="cpu", dtype=dtype, weights="int8")


def test_unknown_weights_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="weights is 'int4', expected"):
        load_backbone(folder, device="cpu", weights="int4")  # type: ignore[arg-type]


def test_elsewhere_the_model_stays_as_it_is_and_says_so_once() -> None:
    backbone = tiny().to("meta")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert quantized(backbone) is backbone
    assert len(caught) == 1
    assert 'the model is on meta: load it with device="cpu"' in str(caught[0].message)
    assert not any(isinstance(layer, Int8Linear) for layer in backbone.modules())


def test_the_kind_of_weights_is_said() -> None:
    assert kind_of_weights(tiny()) == "torch.float32"
    assert kind_of_weights(quantized(tiny())) == "torch.float32, int8 weights"
