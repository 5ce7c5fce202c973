"""Models, tokenizers, templates and adapters that don't do: said with what was found, expected, and what to do."""

import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

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
from tests.builders import adapted, randomised, tiny
from tests.chat import byte_tokenizer, chat_backbone, chat_model
from tests.engine.conftest import Start, model_for
from tests.engine.saying import goes_on, user


def test_a_tokenizer_without_a_chat_template() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer)
    with pytest.raises(MessageError, match=r"no chat template: set tokenizer\.chat_template"):
        DeltaMemEngine(model_for(), bare, store=":memory:")


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


@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/folder", "./nothing", "bad//name", ""])
def test_models_that_cannot_be_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model_for().adapter.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=f"(?s){re.escape(repr(name))} could not be loaded.*check the name"):
        DeltaMemEngine.from_pretrained(name, adapter=tmp_path, store=":memory:")


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    model_for().adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(BackboneError, match=r"no model at .*expected a folder with a config\.json, or a hub id"):
        DeltaMemEngine.from_pretrained(tmp_path / "nothing", adapter=tmp_path / "adapter")
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
