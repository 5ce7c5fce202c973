"""A model small enough to load in a command's test: letters are its tokens, its weights are random."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from deltamem_agents import DeltaMemEngine, SQLStore
from deltamem_agents.cli import app
from tests.builders import adapted, tiny

SPECIAL = ["<|unk|>", "<|im_start|>", "<|im_end|>"]
LETTERS = [chr(code) for code in range(32, 127)]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)


def letter_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *LETTERS])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=letters,
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
    )


@dataclass(frozen=True)
class Saved:
    """Folders that the commands can load, and a store for them."""

    model: Path
    adapter: Path
    store: Path

    def engine(self) -> DeltaMemEngine:
        return DeltaMemEngine.from_pretrained(self.model, adapter=self.adapter, store=self.store)

    def chat(self, *options: str, session: str = "alice", say: str | bytes = "") -> Result:
        where = ["--model", str(self.model), "--adapter", str(self.adapter), "--store", str(self.store)]
        return CliRunner().invoke(app, ["chat", "--session", session, *where, *options], input=say)

    def sessions(self, *arguments: str, say: str = "") -> Result:
        return CliRunner().invoke(app, ["sessions", *arguments, "--store", str(self.store)], input=say)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    backbone = tiny(vocab_size=len(SPECIAL) + len(LETTERS), max_position_embeddings=2048)
    model = adapted(backbone=backbone)
    model.adapter.save_pretrained(folder / "adapter", dtype=torch.float32)
    model.detach().save_pretrained(folder / "model")
    letter_tokenizer().save_pretrained(folder / "model")
    return folder


@pytest.fixture
def saved(folders: Path, tmp_path: Path) -> Saved:
    return Saved(folders / "model", folders / "adapter", tmp_path / "sessions.db")


@pytest.fixture
def engine(saved: Saved) -> Iterator[DeltaMemEngine]:
    with saved.engine() as opened:
        yield opened


@pytest.fixture
def filled(saved: Saved, engine: DeltaMemEngine) -> Saved:
    """A store with a session of two turns and an absorbed message, and one of one turn."""
    engine.generate([{"role": "user", "content": "My dog is called Rex."}], session="alice", max_new_tokens=4)
    engine.generate(
        [{"role": "user", "content": "I [bold]love[/bold] him."}], session="alice", thread="phone", max_new_tokens=4
    )
    engine.absorb([{"role": "tool", "content": "Rex was fed."}], session="alice")
    engine.generate([{"role": "user", "content": "Hello."}], session="bob", max_new_tokens=4)
    return saved


def ids_of(saved: Saved, name: str = "alice") -> list[str]:
    with SQLStore(saved.store) as store:
        return [snapshot.id for snapshot in store.log(name)]


def turns_of(saved: Saved, name: str) -> int:
    with SQLStore(saved.store) as store:
        info = store.session(name)
        assert info is not None
        return info.turns


def row(output: str, word: str) -> str:
    """The one line that says this."""
    (line,) = (line for line in output.splitlines() if word in line)
    return line
