"""An engine on a tiny model with a randomised adapter: it remembers nothing right, but it does all the work."""

from collections.abc import Iterator

import pytest

from deltamem_agents import DeltaMemEngine
from tests.chat import byte_tokenizer, chat_model


@pytest.fixture(scope="module")
def engine() -> Iterator[DeltaMemEngine]:
    with DeltaMemEngine(chat_model(), byte_tokenizer(), store=":memory:") as opened:
        yield opened
