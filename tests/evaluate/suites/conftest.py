"""Tiny files in each benchmark's format, and an engine that reads messages by themselves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deltamem_agents import DeltaMemEngine
from deltamem_agents.evaluate.suites import Suite, load_suite
from tests.chat import byte_tokenizer, chat_model

DATA = Path(__file__).parent / "data"


@pytest.fixture
def engine() -> Iterator[DeltaMemEngine]:
    with DeltaMemEngine(chat_model(), byte_tokenizer(), store=":memory:", recent_messages=0) as opened:
        yield opened


@pytest.fixture
def locomo() -> Suite:
    return load_suite("locomo", DATA)
