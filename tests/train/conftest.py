"""A tiny model with the bundled model's tokenizer: small enough to train in a test."""

import pytest
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.backbone.bundled import bundled_path
from tests.builders import tiny


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(bundled_path())


@pytest.fixture
def backbone(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return tiny("Llama", vocab_size=len(tokenizer), max_position_embeddings=512)
