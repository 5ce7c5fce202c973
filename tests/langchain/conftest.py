"""A tiny random model with a byte-level tokenizer, the engine on it, and what a session holds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deltamem_agents import DeltaMemEngine, DeltaMemModel
from langchain_deltamem import ChatDeltaMem
from tests.builders import adapted, tiny

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
CONTEXT = 4096
Said = Callable[[str], list[tuple[str, str]]]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tokenizer: PreTrainedTokenizerFast) -> DeltaMemModel:
    """It says printable ASCII, and never ends by itself: the last layer gives all other tokens a logit of 0."""
    backbone = tiny(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)
    letters = tokenizer("".join(map(chr, range(32, 127))))["input_ids"]
    silent = torch.ones(len(tokenizer), dtype=torch.bool)
    silent[letters] = False
    with torch.no_grad():
        backbone.get_output_embeddings().weight[silent] = 0
    return adapted(backbone=backbone)


@pytest.fixture
def engine(tiny_model: DeltaMemModel, tokenizer: PreTrainedTokenizerFast) -> Iterator[DeltaMemEngine]:
    with DeltaMemEngine(tiny_model, tokenizer, store=":memory:") as engine:
        yield engine


@pytest.fixture
def model(engine: DeltaMemEngine) -> ChatDeltaMem:
    return ChatDeltaMem(engine=engine, max_new_tokens=6)


@pytest.fixture
def said(engine: DeltaMemEngine) -> Said:
    """The ledger of a session: who said what, in order."""

    def read(session: str) -> list[tuple[str, str]]:
        info = engine.store.session(session)
        if info is None or info.head is None:
            return []
        entries = [entry for turn in engine.store.line(info.head) for entry in turn.entries]
        contents = [json.loads(entry.text)["content"] if entry.text else "…" for entry in entries]
        return [(entry.role, content) for entry, content in zip(entries, contents, strict=True)]

    return read


@pytest.fixture(scope="session")
def folders(
    tiny_model: DeltaMemModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The tiny model and its adapter as folders, to load by name."""
    root = tmp_path_factory.mktemp("tiny")
    tiny_model.backbone.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    tiny_model.adapter.save_pretrained(root / "adapter")
    return root / "model", root / "adapter"


@pytest.fixture
def names(engine: DeltaMemEngine) -> Callable[[], list[str]]:
    """The sessions there are."""
    return lambda: [info.name for info in engine.sessions()]
