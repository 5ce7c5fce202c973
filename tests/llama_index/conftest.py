"""The engine on a tiny random model, LLM and memory on it, and what a session holds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deltamem_agents import DeltaMemEngine
from llama_index_deltamem import DeltaMemLLM, DeltaMemory
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for
from tests.llama_index.lines import Said, spoken_in

CONTEXT = 16384


@pytest.fixture
def engine() -> Iterator[DeltaMemEngine]:
    with DeltaMemEngine(model_for(context=CONTEXT), byte_tokenizer(), store=":memory:") as engine:
        yield engine


@pytest.fixture
def llm(engine: DeltaMemEngine) -> DeltaMemLLM:
    return DeltaMemLLM(engine=engine, max_new_tokens=6)


@pytest.fixture
def alice(engine: DeltaMemEngine) -> DeltaMemory:
    return DeltaMemory(engine=engine, session_id="alice", window=4)


@pytest.fixture
def said(engine: DeltaMemEngine) -> Said:
    """The ledger of a session: who said what, in order."""
    return lambda session: spoken_in(engine, session)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny model and its adapter as folders, to load by name."""
    root = tmp_path_factory.mktemp("tiny")
    model = model_for(context=CONTEXT)
    model.backbone.save_pretrained(root / "model")
    byte_tokenizer().save_pretrained(root / "model")
    model.adapter.save_pretrained(root / "adapter")
    return root / "model", root / "adapter"
