"""Two hundred turns cost what fifty do: prompts, and bytes on disk."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deltamem_agents import DeltaMemEngine, Snapshot, Turn
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for

EARLY, TURNS, RECENT, KEEP = 50, 200, 4, 16
SECRETS = [f"code {number * 7919 % 10007:05d}" for number in range(TURNS)]


@dataclass
class Talked:
    """A conversation of 200 turns, and what it left."""

    turns: list[Turn]
    line: list[Snapshot]
    early: int
    """Bytes of the store after the first 50 turns."""
    late: int
    unpruned: int
    """After 50 turns more without pruning."""
    stored: bytes
    """The store's file, at the end."""


def talk(path: Path, turns: range, *, keep: int) -> Iterator[Turn]:
    """Some turns, then the store is closed, so that all of it is in its one file."""
    with DeltaMemEngine(
        model_for(), byte_tokenizer(), store=path, recent_messages=RECENT, keep_snapshots=keep
    ) as engine:
        for n in turns:
            yield engine.generate([{"role": "user", "content": SECRETS[n]}], session="alice", max_new_tokens=6)


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> Talked:
    path = tmp_path_factory.mktemp("flat") / "store.db"
    turns = list(talk(path, range(EARLY), keep=KEEP))
    early, copied = path.stat().st_size, path.with_name("unpruned.db")
    shutil.copy(path, copied)
    list(talk(copied, range(EARLY, 2 * EARLY), keep=TURNS))
    turns += talk(path, range(EARLY, TURNS), keep=KEEP)
    late, stored = path.stat().st_size, path.read_bytes()
    with DeltaMemEngine(model_for(), byte_tokenizer(), store=path) as engine:
        line = engine.store.line(engine.sessions()[0].head or "")
    return Talked(turns, line, early, late, copied.stat().st_size, stored)


def test_prompts_stay_within_the_window(talked: Talked) -> None:
    prompts = [turn.usage.prompt_tokens for turn in talked.turns]
    lengths = [entry.tokens for snapshot in talked.line for entry in snapshot.entries]
    question = talked.line[-1].entries[0].tokens  # all are equally long
    fixed = prompts[0] - question
    assert talked.line[-1].turn == TURNS
    assert max(prompts) <= fixed + question + 2 * RECENT * max(lengths)
    known = prompts[RECENT - KEEP :]  # of turns whose windows hold messages that are still on the line
    assert min(known) >= fixed + question + RECENT * min(lengths)
    assert max(prompts[EARLY:]) <= 1.05 * max(prompts[:EARLY])


def test_the_store_stops_growing(talked: Talked) -> None:
    assert talked.late <= 1.1 * talked.early
    assert talked.unpruned > 1.3 * talked.early  # so the bound is the pruning's work
    assert KEEP <= len(talked.line) <= 2 * KEEP


def test_texts_of_pruned_turns_are_not_in_the_file(talked: Talked) -> None:
    found = [secret.encode() in talked.stored for secret in SECRETS]
    assert not any(found[: TURNS - 2 * KEEP])  # pruning comes every few turns
    assert all(found[TURNS - KEEP :])
