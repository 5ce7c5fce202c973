"""Whether a conversation gets slower as it gets longer, and a long history out of proportion."""

from pathlib import Path

from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.bench.forwards import interleave
from deltamem_agents.bench.report import BenchRow
from deltamem_agents.bench.subject import Subject
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.messages import Message

RECENT = 4


def turn_row(subject: Subject, folder: Path, *, early: int, late: int, repeats: int, target: float | None) -> BenchRow:
    """A late turn against an early one of the same conversation with a fixed window, engine and store included.

    Two sessions are held that far apart and take turns, so that both see the same machine. Of `early` and `late`, both
    must be even or odd: the window moves every other turn.
    """
    assert (late - early) % 2 == 0, "these turns have windows of different lengths"
    said = {"old": 0, "young": 0}
    with DeltaMemEngine(
        subject.model, subject.tokenizer, store=folder / "turns.db", recent_messages=RECENT, transcript="window"
    ) as engine:

        def turn(session: str) -> None:
            said[session] += 1
            note = f"Note {said[session]:04}: shelf {said[session] * 7919 % 10000:04} holds a box of blue glass beads."
            engine.generate([{"role": "user", "content": note}], session=session, max_new_tokens=4)

        for session, reached in {"old": late - 1, "young": early - 1}.items():
            for _ in range(reached):
                turn(session)
        old, young = interleave(lambda: turn("old"), lambda: turn("young"), repeats=repeats)
    return BenchRow.ratio(f"turn {late} ÷ turn {early}, window of {RECENT} messages", old, young, target=target)


def history_row(subject: Subject, *, few: int, many: int, repeats: int, target: float | None) -> BenchRow:
    """Rendering a history of many short messages against one of few: `many / few` where time grows with their number.

    All messages of a role are alike, which is the hard case for telling them apart.
    """
    talk = [Message(role=("user", "assistant")[n % 2], content="Good." if n % 2 else "And now?") for n in range(many)]

    def render(messages: list[Message]) -> None:
        ChatTemplate(subject.tokenizer).render(messages)  # a new one has no tokens yet

    long, short = interleave(lambda: render(talk), lambda: render(talk[:few]), repeats=repeats)
    return BenchRow.ratio(f"rendering {many:,} short messages ÷ {few}", long, short, target=target)
