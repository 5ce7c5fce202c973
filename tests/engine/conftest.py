"""Engines on a tiny model with a randomised adapter."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from deltamem_agents import DeltaMemEngine, DeltaMemModel
from tests.chat import byte_tokenizer, chat_model

Start = Callable[..., DeltaMemEngine]


@cache
def model_for(
    roles: tuple[str, ...] = ("user", "tool"), granularity: str = "token", context: int = 2048
) -> DeltaMemModel:
    """One model per kind of adapter; several engines may share it, as processes share a model folder."""
    return chat_model(context=context, absorb_roles=roles, write_granularity=granularity)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Opens engines on the test's own store file, and closes them."""
    opened = []

    def open_engine(model: DeltaMemModel | None = None, **options: object) -> DeltaMemEngine:
        options = {"store": tmp_path / "store.db", **options}
        engine = DeltaMemEngine(model or model_for(), byte_tokenizer(), **options)  # type: ignore[arg-type]
        opened.append(engine)
        return engine

    yield open_engine
    for engine in opened:
        engine.close()


@pytest.fixture
def engine(start: Start) -> DeltaMemEngine:
    return start()
