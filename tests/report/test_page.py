"""The page: all of a session, nothing from outside, and nothing that was said is taken for HTML."""

import base64
import re
import struct
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents import DeltaMemEngine, FingerprintError, SessionNotFoundError, Snapshot
from deltamem_agents.report import recent_writes, session_page
from deltamem_agents.report.chart import HEIGHT, WIDTH, turn_chart
from deltamem_agents.report.heat import heat_map
from deltamem_agents.report.history import TurnChange, turn_changes
from tests.builders import MECHANISMS
from tests.chat import chat_model
from tests.engine.conftest import Start, engine, model_for, start

__all__ = ["engine", "start"]
TURN = Snapshot(
    id="a",
    parent=None,
    session="alice",
    thread="main",
    turn=2,
    messages=1,
    thread_messages=1,
    thread_tokens=1,
    fingerprint="",
    created_at=datetime.now(UTC),
    state=b"",
    entries=(),
    kind="turn",
)
NASTY = """<script>alert("x")</script> & {{ 7 * 7 }} </style> '"""


class Parsed(HTMLParser):
    """What a browser makes of a page."""

    VOID = frozenset({"meta", "img", "line", "rect", "polyline", "circle", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and (kind is None or kind in (a.get("class") or "").split())]


def say(engine: DeltaMemEngine, *texts: str, session: str = "alice", thread: str | None = None) -> None:
    for text in texts:
        said = [{"role": "user", "content": text}]
        engine.generate(said, session=session, thread=thread, max_new_tokens=4)


def page(engine: DeltaMemEngine, session: str = "alice", *, turns: int | None = None) -> Parsed:
    writes = None if turns is None else recent_writes(engine, session, turns=turns)
    return Parsed(session_page(engine.store, session, writes=writes))


# --- what it shows


def test_it_shows_layers_turns_messages_and_sizes(engine: DeltaMemEngine) -> None:
    say(engine, "My dog is called Rex.", "I love him.")
    shown = page(engine)
    state = engine.state("alice").tensor[0]

    for layer, heads in enumerate(state):
        assert f"layer {layer}" in shown.text
        assert f"strength {heads.norm():.2f}" in shown.text
    assert len(shown.all("img")) == len(shown.all("figure")) == len(state)
    assert len(shown.all("rect", "bar")) == 2
    assert {"My dog is called Rex.", "I love him."} <= {text.strip() for text in shown.texts}
    assert str(engine.session("alice").info.head) in shown.text
    assert f"{sum(e.tokens for t in engine.session('alice').log() for e in t.entries)} tokens" in shown.text
    assert "--writes" in shown.text


def test_it_needs_nothing_else(engine: DeltaMemEngine) -> None:
    say(engine, "Hello.")
    html = session_page(engine.store, "alice", writes=recent_writes(engine, "alice", turns=1))
    shown = Parsed(html)

    sources = [value for _, a in shown.tags for name, value in a.items() if name in ("src", "href", "xlink:href")]
    assert sources
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert not {tag for tag, _ in shown.tags} & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?:|url\(|@import", html)


@pytest.mark.parametrize("turns", [None, 5])
def test_what_was_said_is_never_html(engine: DeltaMemEngine, turns: int | None) -> None:
    say(engine, NASTY, session=NASTY.strip(), thread=f"thread {NASTY.strip()}")
    call = {"name": "feed", "arguments": {"dog": NASTY}, "id": "1"}
    fed = [{"role": "assistant", "content": NASTY, "tool_calls": [call]}]
    engine.absorb([{"role": "user", "content": "Feed him."}, *fed], session=NASTY.strip())
    with_note(engine, NASTY.strip(), note=NASTY)

    shown = page(engine, NASTY.strip(), turns=turns)

    assert not shown.all("script")
    assert "49" not in [text.strip() for text in shown.texts]
    assert shown.text.count('<script>alert("x")</script> & {{ 7 * 7 }} </style>') >= 6


def with_note(engine: DeltaMemEngine, session: str, *, note: str) -> None:
    head = engine.session(session).info.head
    assert head is not None
    last = engine.store.snapshot(head)
    noted = replace(last, id="noted", parent=head, turn=last.turn + 1, entries=(), note=note)
    engine.store.commit(session, noted, expected=head)


def test_an_empty_session_has_a_page(engine: DeltaMemEngine) -> None:
    say(engine, "Hello.")
    engine.session("alice").rollback(turns=1)

    shown = page(engine)

    assert "This session is empty" in shown.text
    assert not shown.all("img")
    assert len(shown.all("article", "left")) == 1


def test_commits_that_were_left_are_told_apart(engine: DeltaMemEngine) -> None:
    say(engine, "one", "two", "three")
    engine.session("alice").rollback(turns=1)
    say(engine, "another three")

    shown = page(engine)

    assert len(shown.all("article", "commit")) == 4
    assert len(shown.all("article", "left")) == 1
    assert len(shown.all("span", "head")) == 1
    assert len(shown.all("rect", "bar")) == 3


def test_texts_that_are_not_kept_are_said_so(start: Start) -> None:
    engine = start(transcript="none")
    say(engine, "My dog is called Rex.")
    shown = page(engine, turns=3)
    assert shown.text.count("The text is not kept.") == 2
    assert "How strongly is unknown" in shown.text
    assert "Rex" not in shown.text


def test_a_long_session_folds_its_older_commits_and_says_what_was_pruned(start: Start) -> None:
    engine = start(keep_snapshots=30)
    for number in range(60):
        engine.absorb([{"role": "user", "content": f"note {number}"}], session="alice")
    kept = len(engine.session("alice").log())
    first = engine.session("alice").log()[0].turn

    shown = page(engine)

    assert len(shown.all("details")) == 1
    assert f"{kept - 20} older commits" in shown.text
    assert f"Turns before {first} were pruned." in shown.text
    assert len(shown.all("article", "commit")) == len(shown.all("rect", "bar")) == kept


def test_there_is_no_page_of_no_session(engine: DeltaMemEngine) -> None:
    with pytest.raises(SessionNotFoundError, match="nobody"):
        session_page(engine.store, "nobody")


# --- what was written


def test_tokens_of_the_last_turns_are_those_that_were_written(engine: DeltaMemEngine) -> None:
    say(engine, "My dog is called Rex.", "I love him.", "He is three.")
    writes = recent_writes(engine, "alice", turns=2)
    last = engine.inspect("alice").last

    assert list(writes) == [turn.id for turn in engine.session("alice").log()[1:]]
    assert list(writes.values())[-1] == last
    shown = page(engine, turns=2)
    styles = [dict(part.split(": ") for part in a["style"].split("; ")) for a in shown.all("span") if a.get("style")]
    messages = [m for w in writes.values() for m in w.messages]
    assert sum("--w" in style for style in styles) == sum(len(m.writes or ()) for m in messages)
    assert sum("--r" in style for style in styles) == sum(len(m.reads or ()) for m in messages)
    assert all(0 <= float(number) <= 1 for style in styles for number in style.values())
    assert "the further its reads of the memory opened" in shown.text
    assert "The last 2 turns" in shown.text


def test_an_adapter_without_read_gates_has_no_lines_under_words(start: Start) -> None:
    engine = start(chat_model(**MECHANISMS["published"]))
    say(engine, "My dog is called Rex.")
    shown = page(engine, turns=1)
    assert any("--w" in (a.get("style") or "") for a in shown.all("span"))
    assert not any("--r" in (a.get("style") or "") for a in shown.all("span"))
    assert "Unmarked messages were only read." in shown.text


def test_writes_take_the_model_that_wrote_them(start: Start) -> None:
    say(start(), "Hello.")
    other = start(model_for(roles=("user",)))
    with pytest.raises(FingerprintError):
        recent_writes(other, "alice", turns=1)


# --- its parts


def test_a_turns_share_is_what_it_changed(engine: DeltaMemEngine) -> None:
    say(engine, "My dog is called Rex.", "I love him.")
    line = engine.store.line(str(engine.session("alice").info.head))
    first, second = turn_changes(engine.store, line)

    assert first.new == 1.0
    assert second.new == engine.inspect("alice", writes=False).replaced[1]
    assert second.norm == pytest.approx(float(engine.state("alice").tensor.norm()))


@given(st.lists(st.tuples(st.floats(0, 50), st.none() | st.floats(0, 1)), min_size=1, max_size=300))
def test_a_chart_stays_in_its_frame(found: list[tuple[float, float | None]]) -> None:
    turns = [TurnChange(TURN, norm, new) for norm, new in found]
    chart = turn_chart(turns)

    assert len(chart.columns) == len(found)
    assert 0 < sum(c.labelled for c in chart.columns) <= 12
    for column in chart.columns:
        assert column.x - column.width / 2 >= 0
        assert column.x + column.width / 2 <= WIDTH + 1e-6
        assert 0 <= column.bar <= HEIGHT
        assert 0 <= column.y <= HEIGHT


@given(st.integers(1, 4), st.integers(1, 8), st.integers(0, 2**31))
def test_a_heat_map_is_a_png_with_a_pixel_for_each_number(heads: int, rank: int, seed: int) -> None:
    state = torch.randn(heads, rank, rank, generator=torch.Generator().manual_seed(seed))
    pixels = decode(heat_map(state, top=1.0))

    assert pixels.shape == (rank, heads * (rank + 1) - 1, 4)
    for head in range(heads):
        mine = pixels[:, head * (rank + 1) :][:, :rank]
        assert torch.equal(mine[..., 3], (255 * state[head].abs()).clamp(max=255).round().to(torch.uint8))
        red = mine[..., 0].int() > mine[..., 2].int()
        assert torch.equal(red, state[head] >= 0)


def decode(url: str) -> torch.Tensor:
    """uint8 [height, width, 4], of a PNG without filters."""
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    place, chunks = 8, dict[bytes, bytes]()
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        assert struct.unpack(">I", data[place + 8 + size : place + 12 + size]) == (zlib.crc32(kind + body),)
        chunks[kind], place = body, place + 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = torch.frombuffer(bytearray(zlib.decompress(chunks[b"IDAT"])), dtype=torch.uint8).view(height, 1 + 4 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].view(height, width, 4)
