"""One process tells, another goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deltamem_agents import DeltaMemEngine, Message
from tests.chat import byte_tokenizer, chat_model

TALK = """
import json, sys
import torch
from deltamem_agents import DeltaMemEngine
torch.set_num_threads(1)
model, adapter, store, *said = sys.argv[1:]
if model == "bundled":
    engine = DeltaMemEngine.bundled(store=store)
else:
    engine = DeltaMemEngine.from_pretrained(model, adapter=adapter, store=store)
with engine:
    replies = [
        engine.generate([{"role": "user", "content": text}], session="alice", max_new_tokens=12).reply.content
        for text in said
    ]
    print(json.dumps([replies, engine.state("alice").tensor.flatten().tolist()]))
"""


def talk(*arguments: str | Path) -> tuple[list[str], torch.Tensor]:
    """A process of its own, that says these things and ends."""
    done = subprocess.run(
        [sys.executable, "-c", TALK, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    replies, state = json.loads(done.stdout.splitlines()[-1])
    return replies, torch.tensor(state)


def test_a_session_goes_on_in_another_process(tmp_path: Path) -> None:
    model = chat_model()
    model.adapter.save_pretrained(tmp_path / "adapter", dtype=torch.float32)
    model.detach().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    folders = (tmp_path / "model", tmp_path / "adapter")
    told, _ = talk(*folders, tmp_path / "store.db", "hi", "the cat is Tom")
    went_on, state = talk(*folders, tmp_path / "store.db", "who?")
    with DeltaMemEngine.from_pretrained(folders[0], adapter=folders[1], store=":memory:") as engine:
        texts = ("hi", "the cat is Tom", "who?")
        said = [engine.generate([Message(role="user", content=t)], session="alice", max_new_tokens=12) for t in texts]
        assert [turn.reply.content for turn in said] == told + went_on
        expected = engine.state("alice").tensor.flatten()
    assert (state - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.slow
def test_the_bundled_model_goes_on_in_another_process(tmp_path: Path) -> None:
    told, _ = talk("bundled", "", tmp_path / "store.db", "My cat is called Tom.", "It is raining.")
    went_on, state = talk("bundled", "", tmp_path / "store.db", "What is my cat called?")
    with DeltaMemEngine.bundled(store=":memory:") as engine:
        texts = ("My cat is called Tom.", "It is raining.", "What is my cat called?")
        said = [engine.generate([Message(role="user", content=t)], session="alice", max_new_tokens=12) for t in texts]
        assert [turn.reply.content for turn in said] == told + went_on
        expected = engine.state("alice").tensor.flatten()
    assert (state - expected).norm() <= 1e-3 * expected.norm()
