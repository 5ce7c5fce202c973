"""Where windows start: at turn boundaries, moving in blocks, decided by the ledger alone."""

import itertools
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents import MemoryStore, Message, Role, Snapshot
from deltamem_agents.engine.windows import Window, block_start, load_window
from deltamem_agents.store import Entry

SIZES = st.integers(1, 40)
TURNS = st.lists(st.lists(SIZES, min_size=1, max_size=4), max_size=14)
"""Turns with the number of tokens of each of their messages."""


class Line:
    """A session that grows by turns, in a store of its own."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.head: Snapshot | None = None

    def add(
        self, sizes: Sequence[int], *, roles: Sequence[Role] = (), texts: bool = True, thread: str = "main"
    ) -> None:
        speakers = roles or ["user"] * len(sizes)
        entries = [self._entry(size, role, texts) for size, role in zip(sizes, speakers, strict=True)]
        head = self.head
        own = self.store.thread(head.id, thread, last=1) if head else []
        said, tokens = (own[-1].thread_messages, own[-1].thread_tokens) if own else (0, 0)
        self.head = Snapshot(
            id=uuid.uuid4().hex,
            parent=head.id if head else None,
            session="a",
            thread=thread,
            turn=head.turn + 1 if head else 1,
            messages=(head.messages if head else 0) + len(sizes),
            thread_messages=said + len(sizes),
            thread_tokens=tokens + sum(sizes),
            fingerprint="",
            created_at=datetime.now(UTC),
            state=b"state",
            entries=tuple(entries),
            kind="turn",
        )
        self.store.commit("a", self.head, expected=head.id if head else None)

    def window(self, *, recent: int, room: int = 10**9, new: int = 0, answers: bool = False) -> Window:
        return load_window(self.store, self.head, "main", recent=recent, room=room, new=new, answers=answers)

    def _entry(self, tokens: int, role: str, texts: bool) -> Entry:
        message = Message.model_validate({"role": role, "content": "x"})
        text = message.model_dump_json() if texts else None
        return Entry(role=role, digest=message.digest(), message_id=None, text=text, tokens=tokens, written=True)


@given(st.integers(0, 500), st.integers(0, 50))
def test_a_block_keeps_between_k_and_2k_messages_and_never_moves_back(count: int, recent: int) -> None:
    start, following = block_start(count, recent), block_start(count + 1, recent)
    assert 0 <= start <= following <= count + 1
    assert count - start <= max(2 * recent - 1, 0)
    assert count - start >= min(count, recent)


@given(TURNS, st.integers(0, 6))
def test_a_window_keeps_the_recent_messages_and_starts_at_a_turn(turns: list[list[int]], recent: int) -> None:
    line, before, boundaries = Line(), 0, {0}
    for sizes in turns:
        line.add(sizes)
        assert line.head is not None
        count = line.head.messages
        boundaries.add(count)
        window = line.window(recent=recent)
        assert window.position in boundaries
        assert window.position >= before
        before = window.position
        assert len(window.messages) == count - window.position >= min(count, recent)
        longest = max(len(sizes) for sizes in turns)
        assert len(window.messages) <= max(0, 2 * recent - 1) + longest - 1
        assert (window.start is None) == (window.position == 0)


@given(TURNS, st.integers(0, 6), st.integers(40, 200))
def test_a_window_fits_beside_the_new_messages_and_never_moves_back(
    turns: list[list[int]], recent: int, room: int
) -> None:
    line, before = Line(), 0
    for sizes in turns:
        if sum(sizes) > room:  # in groups; then there is no window at all
            continue
        window = line.window(recent=recent, room=room, new=sum(sizes))
        assert sum(e.tokens for turn in window.turns for e in turn.entries) + sum(sizes) <= room
        assert window.position >= before
        before = window.position
        line.add(sizes)


def test_the_token_rule_moves_the_start_in_quarters_of_the_room() -> None:
    """Else each turn would begin elsewhere, and no KV cache would ever serve."""
    line, starts = Line(), []
    for _ in range(40):
        line.add([5, 5])
        starts.append(line.window(recent=1000, room=200, new=5).position)
    assert starts[-1] == 50  # 400 tokens and 5 new ones: 205 must go, in quarters 250
    moves = sum(a != b for a, b in itertools.pairwise(starts))
    assert moves == 5


def test_a_turn_longer_than_a_quarter_of_the_room_is_not_cut_off_for_the_rounding() -> None:
    line = Line()
    for sizes in ([4], [3], [34]):
        line.add(sizes)
    assert line.window(recent=1000, room=40, new=1).position == 2


def test_an_empty_line_has_an_empty_window() -> None:
    assert load_window(MemoryStore(), None, "main", recent=4, room=100) == Window(None, (), ())


@pytest.mark.parametrize("recent", [0, 1, 2])
def test_tool_results_stay_with_their_calls(recent: int) -> None:
    line = Line()
    line.add([5, 5], roles=["user", "assistant"])
    line.add([5, 5], roles=["user", "assistant"])
    line.add([5, 5], roles=["tool", "assistant"])
    line.add([5, 5], roles=["tool", "assistant"])
    assert line.window(recent=recent, answers=True).position == 2
    line.add([5, 5], roles=["tool", "assistant"])
    assert line.window(recent=recent).position == (10 if recent == 0 else 2)


def test_where_a_tools_call_does_not_fit_its_result_goes_with_it() -> None:
    line = Line()
    line.add([5, 5], roles=["user", "assistant"])
    line.add([50, 5], roles=["user", "assistant"])
    line.add([5, 5], roles=["tool", "assistant"])
    line.add([5, 5], roles=["user", "assistant"])
    assert line.window(recent=100, room=40).position == 6


def test_dropped_texts_are_behind_the_window() -> None:
    line = Line()
    line.add([5, 5], texts=False)
    line.add([5, 5])
    assert line.window(recent=100).position == 2
    line.add([5, 5], texts=False)
    assert line.window(recent=100).position == 6


def texts(window: Window) -> tuple[int, int]:
    return sum(len(t.entries) for t in window.earlier), sum(len(t.entries) for t in window.turns)


def test_what_lies_before_another_threads_turn_is_shown_from_the_state_after_it() -> None:
    line = Line()
    line.add([5, 5])
    line.add([5, 5], thread="other")
    window = line.window(recent=8)
    assert texts(window) == (2, 0)
    assert window.start_id == line.head.id if line.head else None
    line.add([5, 5])
    line.add([5, 5])
    window = line.window(recent=8)
    assert texts(window) == (2, 4)
    assert line.head is not None
    assert window.start_id == line.store.line(line.head.id)[1].id


def test_a_window_counts_the_messages_of_its_own_thread() -> None:
    line = Line()
    for _ in range(4):
        line.add([5, 5])
        line.add([5] * 7, thread="other")
    window = line.window(recent=2)
    assert (window.position, window.count, window.tokens) == (6, 8, 40)


def test_where_the_state_before_a_turn_was_pruned_the_turn_is_only_shown() -> None:
    line = Line()
    for _ in range(4):
        line.add([5, 5])
    line.store.prune("a", keep=2)
    window = line.window(recent=8)
    assert texts(window) == (2, 2)
    assert window.start_id == window.earlier[-1].id


def test_a_part_of_a_thread_is_shown_up_to_a_message() -> None:
    line = Line()
    for _ in range(3):
        line.add([5, 5])
    window = load_window(line.store, line.head, "main", recent=8, room=100, until=3)
    assert texts(window) == (3, 0)
    assert window.start == line.head
