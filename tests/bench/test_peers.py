"""Peers on a tiny model: everybody decodes the same, and who isn't there is named. How fast is no test's business."""

from pathlib import Path

import pytest
import torch

from deltamem_agents.bench.llama_cpp import llama_cpp_available
from deltamem_agents.bench.peers import (
    EAGER,
    GENERATE,
    INT8,
    LLAMA,
    LLAMA_INT8,
    OURS,
    _bytes,
    _generate,
    _in_int8,
    _ours,
    run_peers,
)
from deltamem_agents.bench.subject import load_subject
from tests.builders import tiny
from tests.chat import byte_tokenizer, chat_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    chat_backbone().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_everybody_is_measured_at_each_number_of_sessions(folder: Path, tmp_path: Path) -> None:
    there = llama_cpp_available()
    report = run_peers(prompt=9, tokens=3, sessions=(1, 2), repeats=2, replies=9, model=folder, output=tmp_path / "out")
    rows = {row.name: row for row in report.rows}
    for what in ("prefill", "decode"):
        for said in ("1 session", "2 sessions"):
            for name in (GENERATE, EAGER, OURS, INT8, *((LLAMA, LLAMA_INT8) if there else ())):
                row = rows[f"{what}, {said}: {name}"]
                assert row.unit == "tokens/s"
                assert len(row.samples) == 2
                assert min(row.samples) > 0
    ratio = rows[f"decode, 1 session: {INT8} ÷ {GENERATE}, tokens/s"]
    assert ratio.measured is not None
    assert ratio.samples[0] == pytest.approx(ratio.measured[0][0] / ratio.measured[1][0])
    assert ratio.samples[0] == pytest.approx(
        rows[f"decode, 1 session: {INT8}"].samples[0] / rows[f"decode, 1 session: {GENERATE}"].samples[0]
    )
    if there:
        assert rows[f"decode, 1 session: {INT8} ÷ {LLAMA_INT8}, tokens/s"].target == 0.8
        assert rows[f"prefill, 2 sessions: {OURS} ÷ {LLAMA}, tokens/s"].target is None
    assert ("pip install llama-cpp-python" in report.setup["not run"]) is not there
    assert "--vllm PYTHON" in report.setup["not run"]
    assert rows["bandwidth of memory, read"].value > 0
    assert any("÷ floor of" in name for name in rows)
    targets = {name: row.target for name, row in rows.items() if row.target is not None}
    decode = "decode per token, compiled, KV cache 9: with memory ÷ without"
    assert targets[f"{decode}, only read"] == 1.05
    assert targets[f"{decode}, written"] == 1.08
    assert targets["8 sessions in one `batch` ÷ one by one, turns/s"] == 4
    assert targets["peak memory, 9 tokens ÷ frozen"] == 1.05
    equal = rows["greedy replies of 3 tokens equal to those of the model's own forward"]
    assert (equal.samples, equal.unit, equal.hit) == ((9.0,), "of 9", True)
    assert "decode, 2 sessions: ours" in (tmp_path / "out.md").read_text(encoding="utf-8")


@torch.inference_mode()
def test_decoding_goes_on_from_what_was_fed(folder: Path) -> None:
    """A frozen model with an empty memory that has no effect says what `generate` says."""
    subject = load_subject(folder, seed=0)
    with torch.no_grad():
        for parameter in subject.model.adapter.parameters():
            parameter.zero_()
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12]]
    said = _generate(subject.frozen)(prompts)(6)
    for compiled in (True, False):
        assert _ours(subject.model, compiled=compiled)(prompts)(6) == said


def test_a_token_waits_for_all_weights_but_a_separate_embedding(folder: Path) -> None:
    tied, apart = tiny(tie_word_embeddings=True), tiny(tie_word_embeddings=False)
    assert _bytes(tied) == _bytes(apart)
    subject = load_subject(folder, seed=0)
    assert 3 < _bytes(subject.frozen) / _bytes(_in_int8(subject).backbone) < 4
