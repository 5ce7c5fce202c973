"""What ships, on the real model: the default adapter on the bundled backbone."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents import DeltaMemAdapter, DeltaMemEngine, DeltaMemModel, Turn
from deltamem_agents.adapter.default import default_adapter_path
from deltamem_agents.backbone.load import load_backbone
from deltamem_agents.evaluate import evaluate_recall

SAID = ("Good morning!", "My name is Anna.", "I live in Lisbon.")
ASKED = [{"role": "user", "content": "Where do I live?"}]


@pytest.fixture(scope="module")
def loaded() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_backbone("bundled")


@pytest.fixture
def model(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> Iterator[DeltaMemModel]:
    model = DeltaMemModel(loaded[0], DeltaMemAdapter.from_pretrained(default_adapter_path("bundled")))
    yield model
    model.detach()


def engine(model: DeltaMemModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> DeltaMemEngine:
    return DeltaMemEngine(model, tokenizer, store=path, recent_messages=4)


def tell(engine: DeltaMemEngine) -> None:
    for text in SAID:
        engine.generate([{"role": "user", "content": text}], session="anna", max_new_tokens=6)


def ask(engine: DeltaMemEngine) -> Turn:
    return engine.generate(ASKED, session="anna", max_new_tokens=12)


@torch.inference_mode()
def test_an_empty_memory_with_writes_off_is_the_frozen_model_bit_for_bit(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    backbone, tokenizer = loaded
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    frozen = backbone(ids).logits
    model = DeltaMemModel(backbone, DeltaMemAdapter.from_pretrained(default_adapter_path("bundled")))
    assert torch.equal(model(ids, write=False).logits, frozen)
    assert torch.equal(backbone(ids).logits, frozen)  # hooks attached, no memory handed in
    written = model(ids).state
    assert not torch.allclose(model(ids, state=written, write=False).logits, frozen, atol=1e-3)
    assert torch.equal(model.detach()(ids).logits, frozen)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in backbone.modules())


def test_warm_cold_and_in_a_fresh_process_a_turn_is_the_same(
    model: DeltaMemModel, loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    turns, states = [], []
    for name in ("warm", "cold"):
        first = engine(model, loaded[1], tmp_path / f"{name}.db")
        tell(first)
        if name == "cold":
            first.close()
            first = engine(model, loaded[1], tmp_path / f"{name}.db")
        turns.append(ask(first))
        states.append(first.state("anna").tensor)
        first.close()
    assert turns[0].usage.cached_tokens > 0
    assert turns[1].usage.cached_tokens == 0
    fresh = tmp_path / "fresh.db"
    with engine(model, loaded[1], fresh) as first:
        tell(first)
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from deltamem_agents import DeltaMemEngine\n"
        "with DeltaMemEngine.bundled(store=sys.argv[1], recent_messages=4) as engine:\n"
        "    question = [{'role': 'user', 'content': 'Where do I live?'}]\n"
        "    print(engine.generate(question, session='anna', max_new_tokens=12).reply.content)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(fresh)], capture_output=True, text=True, check=True)
    with engine(model, loaded[1], fresh) as last:
        states.append(last.state("anna").tensor)
    assert {turn.reply.content for turn in turns} == {run.stdout.strip()}
    for state in states[1:]:
        assert (state - states[0]).norm() / states[0].norm() < 1e-3


@pytest.mark.slow
def test_the_shipped_adapter_recalls_what_it_was_told(
    model: DeltaMemModel, loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    with DeltaMemEngine(model, loaded[1], store=":memory:") as engine:
        report = evaluate_recall(engine, rows=["facts-1"], episodes=40, seeds=[1])
    rates = {condition: share.value for condition, share in report.lines[0].shares.items()}
    assert rates["own"] > 0.7
    assert rates["swapped"] < 0.2
    assert rates["frozen"] < 0.2
