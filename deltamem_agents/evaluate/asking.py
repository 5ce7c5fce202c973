"""Telling and asking live: every message and every reply passes through the engine."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.evaluate.cases import Case, partners
from deltamem_agents.evaluate.rows import Condition, window_condition
from deltamem_agents.messages import Message

ANSWER_TOKENS = 24
REPLY_TOKENS = 12
"""Of replies to what is told: generated as in a chat, but nobody waits for their end."""
Answers = dict[Condition, str]


@contextmanager
def told_sessions(
    engine: DeltaMemEngine,
    cases: Sequence[Case],
    *,
    window: int = 0,
    heard: MutableMapping[str, list[Message]] | None = None,
) -> Iterator[list[str]]:
    """Sessions that were told the cases' earlier messages, one at a time; they are forgotten afterwards.

    Args:
        engine: the engine.
        cases: what is told.
        window: how many recent messages stand in the prompt while it is told.
        heard: gets what was said in each session, replies too.
    """
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
        replies = _say(engine, spoken, tokens=REPLY_TOKENS, window=window)
        if heard is not None:
            for (name, message), reply in zip(spoken, replies, strict=True):
                heard.setdefault(name, []).extend((message, Message(role="assistant", content=reply)))
        yield names
    finally:
        _forget(engine, names)


def ask(
    engine: DeltaMemEngine,
    names: Sequence[str | None],
    cases: Sequence[Case],
    *,
    window: int = 0,
    tokens: int = ANSWER_TOKENS,
    shown: Sequence[Sequence[Message]] | None = None,
) -> list[str]:
    """Free greedy answers to the cases' questions, of these sessions, which stay as they are; None: no memory.

    Args:
        engine: the engine.
        names: a session for each case.
        cases: what is asked.
        window: how many recent messages of the session stand in the prompt.
        tokens: of an answer at most.
        shown: what stands in the prompt before each question, where there is no session.
    """
    before = shown or [()] * len(cases)
    questions = [
        [*said, Message(role="user", content=case.episode.question)] for said, case in zip(before, cases, strict=True)
    ]
    turns = engine.batch(questions, sessions=names, memory="read", recent_messages=window, max_new_tokens=tokens)
    return [turn.reply.content for turn in turns]


def answers(
    engine: DeltaMemEngine,
    cases: Sequence[Case],
    *,
    frozen: dict[str, str],
    note: Callable[[int, Sequence[str]], None] | None = None,
    windows: Sequence[int] = (0,),
    tokens: int = ANSWER_TOKENS,
) -> list[Answers]:
    """Tells a group of cases and asks each question under every condition.

    Args:
        engine: the engine.
        cases: the group; memories are swapped inside it.
        frozen: the frozen model's answers by question, which are always the same; new ones are added.
        note: gets each case's position and the replies that were generated between its telling and its question.
        windows: how many recent messages stand in the prompt: all is told and asked anew with each, and the last one
            counts. The frozen model then sees them too.
        tokens: of an answer at most.
    """
    found: list[Answers] = [{} for _ in cases]

    def record(condition: Condition, whose: Sequence[str | None], rows: Sequence[int], window: int) -> None:
        said = ask(engine, whose, [cases[r] for r in rows], window=window, tokens=tokens)
        for row, answer in zip(rows, said, strict=True):
            found[row][condition] = answer

    everyone, heard = range(len(cases)), dict[str, list[Message]]()
    for window, condition in zip(windows[:-1], map(window_condition, windows), strict=False):
        with told_sessions(engine, cases, window=window) as names:
            record(condition, names, everyone, window)
    window = windows[-1]
    with told_sessions(engine, cases, window=window, heard=heard) as names:
        if any(case.later for case in cases):
            record("before", names, everyone, window)
            for row, replies in enumerate(_go_on(engine, names, cases)):
                if note is not None:
                    note(row, replies)
        record("own", names, everyone, window)
        swaps = partners([case.episode for case in cases])
        others = {row: names[other] for row, other in enumerate(swaps) if other is not None}
        record("swapped", list(others.values()), list(others), window)
    nobody = [None] * len(cases)
    if window:
        shown = [heard[name][-window:] for name in names]
        plain = ask(engine, nobody, cases, tokens=tokens, shown=shown)
    else:
        new = list({c.episode.question: c for c in cases if c.episode.question not in frozen}.values())
        if new:
            asked = ask(engine, nobody[: len(new)], new, tokens=tokens)
            frozen |= zip((c.episode.question for c in new), asked, strict=True)
        plain = [frozen[case.episode.question] for case in cases]
    for answer, text in zip(found, plain, strict=True):
        answer["frozen"] = text
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


def _say(engine: DeltaMemEngine, spoken: Sequence[tuple[str, Message]], *, tokens: int, window: int = 0) -> list[str]:
    """Says messages to sessions, all queued at once: those of one follow each other, many decode together."""
    turns = engine.batch(
        [[message] for _, message in spoken],
        sessions=[name for name, _ in spoken],
        recent_messages=window,
        max_new_tokens=tokens,
    )
    return [turn.reply.content for turn in turns]


def _forget(engine: DeltaMemEngine, names: Sequence[str]) -> None:
    for name in names:
        if engine.store.session(name) is not None:
            engine.forget(name)
