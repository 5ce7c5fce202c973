"""Models, tokenizers, templates and adapters that don't do: said with what was found, expected, and what to do."""

import re
import warnings
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from deltamem_agents import (
    AdapterError,
    BackboneError,
    DeltaMemAdapter,
    DeltaMemConfig,
    DeltaMemEngine,
    DeltaMemModel,
    FingerprintError,
    Message,
    MessageError,
    StateError,
)
from deltamem_agents.adapter.default import default_adapter_path
from deltamem_agents.backbone.bundled import MODEL_ID, bundled_is_cached
from tests.builders import adapted, randomised, tiny
from tests.chat import byte_tokenizer, chat_backbone, chat_model
from tests.engine.conftest import Start, model_for
from tests.engine.saying import goes_on, user


def test_a_tokenizer_without_a_chat_template() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer)
    with pytest.raises(MessageError, match=r"no chat template: set tokenizer\.chat_template"):
        DeltaMemEngine(model_for(), bare, store=":memory:")


def saved(folder: Path) -> Path:
    """A model with its tokenizer, and an adapter inside."""
    model = chat_model()
    model.adapter.save_pretrained(folder / "adapter")
    model.detach().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    for file in (*folder.glob("tokenizer*"), *folder.glob("chat_template*")):
        file.unlink()
    with pytest.raises(BackboneError, match=r"has a config but no tokenizer \(tokenizer\.json or .*copy it from"):
        DeltaMemEngine.from_pretrained(folder, adapter=folder / "adapter", store=":memory:")


def test_a_folder_without_a_chat_template(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "chat_template.jinja").unlink()
    says = rf"the tokenizer of {re.escape(str(folder))} has no chat template: .*put a chat_template\.jinja into its"
    with pytest.raises(MessageError, match=says):
        DeltaMemEngine.from_pretrained(folder, adapter=folder / "adapter", store=":memory:")


def test_an_adapter_that_ships_asked_of_another_model_by_a_folder_of_its_models_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / MODEL_ID)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterError, match=rf"no adapter ships for {MODEL_ID}: it is a llama-2x32.*for {MODEL_ID}"):
        DeltaMemEngine.from_pretrained(MODEL_ID, store=":memory:")
    shipped = default_adapter_path("bundled")
    with pytest.raises(FingerprintError, match=r"for backbone llama-30x576.*at hand is llama-2x32.*load the model"):
        DeltaMemEngine.from_pretrained(folder, adapter=shipped, store=":memory:")


class Halved(HfQuantizer):
    """Takes a model for quantised, as every quantiser of transformers has it taken, and leaves its weights alone."""

    requires_calibration = False

    def is_serializable(self, **_: object) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


@pytest.fixture(scope="module")
def quantisation() -> QuantizationConfigMixin:
    """A kind of quantisation that transformers is told of, as packages with one do."""
    register_quantizer("halved")(Halved)
    register_quantization_config("halved")(QuantizationConfigMixin)
    return QuantizationConfigMixin(quant_method="halved")  # type: ignore[arg-type]


@pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model is not on this machine")
def test_a_quantised_load_of_a_model_whose_adapter_ships_warns(quantisation: QuantizationConfigMixin) -> None:
    options = {"quantization_config": quantisation}
    says = r"loaded quantised \(halved\), and the adapter that ships .*may recall less\. Load it without"
    with pytest.warns(UserWarning, match=says):
        DeltaMemEngine.bundled(store=":memory:", model_kwargs=options).close()


def test_a_quantised_load_with_an_adapter_of_ones_own_is_taken_as_it_is(
    quantisation: QuantizationConfigMixin, tmp_path: Path
) -> None:
    """It may have been trained on just this."""
    folder, options = saved(tmp_path), {"quantization_config": quantisation}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*quantised.*")
        with DeltaMemEngine.from_pretrained(
            folder, adapter=folder / "adapter", store=":memory:", model_kwargs=options
        ) as engine:
            assert engine.model.backbone.is_quantized
            goes_on(engine)


def test_a_template_that_refuses_a_role(start: Start) -> None:
    picky = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer,
        chat_template="{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "[{{ m['content'] }}]{% endfor %}",
    )
    with DeltaMemEngine(model_for(), picky, store=":memory:") as engine:
        assert engine.generate([user("hi"), Message(role="tool", content="5")], session="alice", max_new_tokens=2)
        (log,) = engine.session("alice").log()
        assert [entry.role for entry in log.entries][:2] == ["user", "tool"]


def test_a_template_that_refuses_everything(start: Start) -> None:
    picky = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer, chat_template="{{ raise_exception('no') }}"
    )
    with DeltaMemEngine(model_for(), picky, store=":memory:") as engine:
        with pytest.raises(MessageError, match=r"refuses messages with roles \['user'\]: no"):
            engine.generate([user("hi")], session="alice")
        assert engine.sessions() == []


@pytest.mark.parametrize("name", ["nobody/nothing", "bad//name", ""])
def test_models_that_cannot_be_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model_for().adapter.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=f"(?s){re.escape(repr(name))} could not be loaded.*check the name"):
        DeltaMemEngine.from_pretrained(name, adapter=tmp_path, store=":memory:")


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    model_for().adapter.save_pretrained(tmp_path / "adapter")
    for model in (tmp_path / "nothing", "/no/such/folder", "./nothing", "~/no such folder"):
        says = rf"there is no folder {re.escape(str(model))}: check the path; expected .* a hub id like"
        with pytest.raises(BackboneError, match=says):
            DeltaMemEngine.from_pretrained(model, adapter=tmp_path / "adapter")
    with pytest.raises(AdapterError, match="nothing"):
        DeltaMemEngine.from_pretrained(tmp_path, adapter=tmp_path / "nothing")
    with pytest.raises(AdapterError, match=r"no adapter ships for .*adapter=…"):
        DeltaMemEngine.from_pretrained(tmp_path)


def test_an_adapter_for_another_backbone_names_both(tmp_path: Path) -> None:
    chat_backbone().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    other = chat_model("Qwen3").adapter
    other.save_pretrained(tmp_path / "adapter")
    with pytest.raises(FingerprintError, match=f"{other.backbone}.*{model_for().adapter.backbone}.*load the model"):
        DeltaMemEngine.from_pretrained(tmp_path / "model", adapter=tmp_path / "adapter", store=":memory:")


@pytest.mark.parametrize("turns", [1, 6])
def test_a_session_of_another_adapter_names_both_and_is_left_alone(turns: int, start: Start) -> None:
    """Also where the whole line is in the window, and a replay would not need the state."""
    first = start(recent_messages=2)
    for number in range(turns):
        first.generate([user(f"{number}")], session="alice", max_new_tokens=2)
    backbone = chat_backbone()
    config = DeltaMemConfig.parse({"rank": 4, "alpha": 4.0, "num_state_heads": 2})
    other = start(DeltaMemModel(backbone, randomised(DeltaMemAdapter.initialize(config, backbone), seed=1)))
    says = f"{re.escape(first.fingerprint)}.*{re.escape(other.fingerprint)}"
    head = first.sessions()
    for call in (
        lambda: other.generate([user("hi")], session="alice"),
        lambda: other.generate([user("hi")], session="alice", memory="read"),
        lambda: other.absorb([user("hi")], session="alice"),
        lambda: other.state("alice"),
    ):
        with pytest.raises(FingerprintError, match=says):
            call()
    assert first.sessions() == head
    goes_on(other)
    first.generate([user("hi")], session="alice", max_new_tokens=2)


def test_a_state_of_nans_is_never_kept(start: Start) -> None:
    model = adapted(backbone=chat_backbone(), absorb_roles=("user",))
    engine = start(model)
    engine.generate([user("hi")], session="alice", max_new_tokens=2)
    head = engine.sessions()
    bias = next(iter(model.adapter.layers.values())).gate_bias
    kept = bias.detach().clone()
    bias.data.fill_(float("nan"))
    with pytest.raises(StateError, match="NaN"):
        engine.generate([user("the cat")], session="alice", max_new_tokens=2)
    assert engine.sessions() == head
    bias.data.copy_(kept)
    engine.generate([user("the cat")], session="alice", max_new_tokens=2)


def test_a_model_that_was_detached(start: Start) -> None:
    model = adapted(backbone=tiny(vocab_size=300, max_position_embeddings=512))
    engine = start(model)
    model.detach()
    with pytest.raises(AdapterError, match="detached"):
        engine.generate([user("hi")], session="alice")
    assert engine.sessions() == []
