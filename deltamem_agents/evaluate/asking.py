"""Telling and asking live: every message and every reply passes through the engine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.evaluate.cases import Case, partners
from deltamem_agents.evaluate.rows import Condition
from deltamem_agents.messages import Message

ANSWER_TOKENS = 24
REPLY_TOKENS = 12
"""Of replies to what is told: generated as in a chat, but nobody waits for their end."""
Answers = dict[Condition, str]


@contextmanager
def told_sessions(engine: DeltaMemEngine, cases: Sequence[Case]) -> Iterator[list[str]]:
    """Sessions that were told the cases' earlier messages, one at a time; they are forgotten afterwards."""
    names = [f"evaluate-{number}" for number in range(len(cases))]
    _forget(engine, names)
    longest = max(len(case.episode.earlier) for case in cases)
    spoken = [
        (name, case.episode.earlier[turn])
        for turn in range(longest)
        for name, case in zip(names, cases, strict=True)
        if turn < len(case.episode.earlier)
    ]
    try:
        _say(engine, spoken, tokens=REPLY_TOKENS)
        yield names
    finally:
        _forget(engine, names)


def ask(engine: DeltaMemEngine, names: Sequence[str | None], cases: Sequence[Case]) -> list[str]:
    """Free greedy answers to the cases' questions, of these sessions, which stay as they are; None: no memory."""
    questions = [[Message(role="user", content=case.episode.question)] for case in cases]
    turns = engine.batch(
        questions, sessions=names, memory="read", recent_messages=0, max_new_tokens=ANSWER_TOKENS
    )
    return [turn.reply.content for turn in turns]


def answers(
    engine: DeltaMemEngine,
    cases: Sequence[Case],
    *,
    frozen: dict[str, str],
    note: Callable[[int, Sequence[str]], None] | None = None,
) -> list[Answers]:
    """Tells a group of cases and asks each question under every condition.

    Args:
        engine: the engine.
        cases: the group; memories are swapped inside it.
        frozen: the frozen model's answers by question, which are always the same; new ones are added.
        note: gets each case's position and the replies that were generated between its telling and its question.
    """
    with told_sessions(engine, cases) as names:
        found: list[Answers] = [{} for _ in cases]

        def record(condition: Condition, whose: Sequence[str | None], rows: Sequence[int]) -> None:
            for row, answer in zip(rows, ask(engine, whose, [cases[r] for r in rows]), strict=True):
                found[row][condition] = answer

        everyone = range(len(cases))
        if any(case.later for case in cases):
            record("before", names, everyone)
            for row, replies in enumerate(_go_on(engine, names, cases)):
                if note is not None:
                    note(row, replies)
        record("own", names, everyone)
        swaps = partners([case.episode for case in cases])
        others = {row: names[other] for row, other in enumerate(swaps) if other is not None}
        record("swapped", list(others.values()), list(others))
    new = list({c.episode.question: c for c in cases if c.episode.question not in frozen}.values())
    if new:
        frozen |= zip((c.episode.question for c in new), ask(engine, [None] * len(new), new), strict=True)
    for answer, case in zip(found, cases, strict=True):
        answer["frozen"] = frozen[case.episode.question]
    return found


def _go_on(engine: DeltaMemEngine, names: Sequence[str], cases: Sequence[Case]) -> list[list[str]]:
    """Asks what the cases ask later, turn by turn; gives the replies, those given in advance too."""
    replies: list[list[str]] = [[] for _ in cases]
    for turn in range(max(len(case.later) for case in cases)):
        live = []
        for row, case in enumerate(cases):
            if turn >= len(case.later):
                continue
            question = Message(role="user", content=case.later[turn].question)
            given = case.later[turn].reply
            if given is None:
                live.append((row, question))
            else:
                engine.absorb([question, Message(role="assistant", content=given)], session=names[row])
                replies[row].append(given)
        texts = _say(engine, [(names[row], question) for row, question in live], tokens=ANSWER_TOKENS)
        for (row, _), text in zip(live, texts, strict=True):
            replies[row].append(text)
    return replies


def _say(engine: DeltaMemEngine, spoken: Sequence[tuple[str, Message]], *, tokens: int) -> list[str]:
    """Says messages to sessions, all queued at once: those of one follow each other, many decode together."""
    turns = engine.batch(
        [[message] for _, message in spoken],
        sessions=[name for name, _ in spoken],
        recent_messages=0,
        max_new_tokens=tokens,
    )
    return [turn.reply.content for turn in turns]


def _forget(engine: DeltaMemEngine, names: Sequence[str]) -> None:
    for name in names:
        if engine.store.session(name) is not None:
            engine.forget(name)
