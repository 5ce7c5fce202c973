"""Runs that two lists share, against the plainest way to find them, and by work that grows with their length."""

import sys
from collections.abc import Sequence
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents import Message
from deltamem_agents.engine.alignment import by_digest
from deltamem_agents.engine.runs import runs_anywhere, runs_at_end
from tests.engine.test_alignment import ledger

lists = st.lists(st.sampled_from("abc"), max_size=12)


def run(said: Sequence[str], line: Sequence[str]) -> int:
    length = 0
    while length < min(len(said), len(line)) and said[-1 - length] == line[-1 - length]:
        length += 1
    return length


@given(said=lists, line=lists)
def test_runs_at_the_end(said: list[str], line: list[str]) -> None:
    assert runs_at_end(said, line) == [run(said[: n + 1], line) for n in range(len(said))]


@given(said=lists, line=lists)
def test_runs_anywhere(said: list[str], line: list[str]) -> None:
    for number, (length, end) in enumerate(runs_anywhere(said, line)):
        each = [(run(said[: number + 1], line[: at + 1]), at) for at in range(len(line))]
        longest = max((size for size, _ in each), default=0)
        assert length == longest
        if length:
            assert end == max(at for size, at in each if size == longest)


@pytest.mark.parametrize("word", ["", " {}"])
def test_what_is_new_in_many_messages_is_found_by_work_that_grows_with_them(word: str) -> None:
    """All alike is the worst case. Counted in lines of Python; `deltamem bench` has the times."""

    def lines_run(count: int) -> int:
        said = [Message(role=("user", "assistant")[n % 2], content="hi" + word.format(n)) for n in range(count)]
        turns = ledger(*(said[n : n + 2] for n in range(0, count - 1, 2)))
        other = [*said[: count // 2], Message(role="user", content="other"), *said[count // 2 :]][:-1]
        seen = 0

        def trace(frame: FrameType, event: str, argument: object) -> object:
            nonlocal seen
            seen += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            by_digest(other, turns)
        finally:
            sys.settrace(before)
        return seen

    few = lines_run(200)
    assert few > 200
    assert lines_run(800) < 6 * few  # 4 where it grows with the number, 16 with its square
