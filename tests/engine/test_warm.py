"""KV caches between turns: the budget, and the memory that comes free."""

import platform
from pathlib import Path

import pytest
import torch

from deltamem_agents.engine.warm import Warm, WarmRows, return_freed_memory
from deltamem_agents.generation import Row, feed
from deltamem_agents.generation.rows import Piece
from deltamem_agents.state import MemoryState
from tests.builders import adapted

BLOCK = 100_000
"""Bytes that glibc takes from its heap, not from the system one by one."""


def row(tokens: int) -> Row:
    model = adapted()
    return feed(model, Row(model.zero_state(1)), [Piece(tuple(range(3, 3 + tokens)), True)])[0]


def warm(session: str, one: Row) -> Warm:
    return Warm(session, "head", None, one)


def test_a_cache_is_taken_once() -> None:
    rows, one = WarmRows(2**30), row(4)
    rows.keep(warm("alice", one))
    assert "alice" in rows
    taken = rows.take("alice")
    assert taken is not None
    assert taken.row is one
    assert "alice" not in rows
    assert rows.take("alice") is None


def test_the_one_kept_longest_ago_goes_when_the_budget_is_full() -> None:
    one = row(4)
    rows = WarmRows(2 * one.cache_bytes)
    for session in ("alice", "bob", "alice", "carol"):
        rows.take(session)
        rows.keep(warm(session, one))
    assert [s for s in ("alice", "bob", "carol") if s in rows] == ["alice", "carol"]
    rows.keep(warm("dave", row(9)))  # larger than the budget by itself
    assert not any(s in rows for s in ("alice", "bob", "carol", "dave"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is returned on glibc alone")
def test_what_lies_between_kept_blocks_goes_back_to_the_system() -> None:
    blocks = [torch.zeros(BLOCK, dtype=torch.uint8) for _ in range(1000)]
    full = resident()
    kept = blocks[::2]
    del blocks
    assert return_freed_memory()
    assert full - resident() > 0.8 * BLOCK * len(kept)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_a_state_is_no_cache() -> None:
    assert Row(MemoryState.zeros(1, 2, 2, 4)).cache_bytes == 0
