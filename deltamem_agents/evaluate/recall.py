"""Recall from the state alone, as a user would meet it: facts told live, free greedy answers, controls beside them."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.asking import ANSWER_TOKENS, answers
from deltamem_agents.evaluate.cases import Case, label_texts, live_case
from deltamem_agents.evaluate.judging import judge
from deltamem_agents.evaluate.own import own_cases
from deltamem_agents.evaluate.perplexity import Reading, read_chunks, text_chunks
from deltamem_agents.evaluate.plain import MEMORIES, asked_of_full_memories, plain_prompts
from deltamem_agents.evaluate.report import (
    Asked,
    Line,
    RecallReport,
    change_line,
    circumstances,
    figure_line,
    reading_line,
)
from deltamem_agents.evaluate.rows import EXAMPLES, LABELS, PLAIN, ROWS, Figure, Row
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.episodes import EpisodeMix
from deltamem_agents.train.facts import Values, training_vocabulary
from deltamem_agents.train.talk import Talk

Progress = Callable[[str, int, int], None]


def evaluate_recall(
    engine: DeltaMemEngine,
    *,
    rows: Sequence[str] = tuple(ROWS),
    episodes: int = 200,
    seeds: Sequence[int] = (0,),
    together: int = 32,
    data: Path | None = None,
    text: Path | None = None,
    file: Path | None = None,
    seen: bool = False,
    trained_on: Sequence[Path] = (),
    progress: Progress | None = None,
    finished: Callable[[RecallReport], None] | None = None,
) -> RecallReport:
    """Tells facts one message at a time, then asks for one of them with nothing of what was said in the prompt.

    Each message is answered by the model as in a chat. Every question is asked of the session that was told, of another
    episode's session, and of the frozen model. The sessions are named `evaluate-…` and forgotten afterwards.

    Args:
        engine: the engine.
        rows: names of `ROWS`.
        episodes: of each kind and seed, at least two.
        seeds: each draws its own episodes.
        together: how many sessions are told and swapped together.
        data: where intents for label maps are; None: built-in texts, of which three topics are for testing.
        text: a text file for the perplexity; None: a built-in text.
        file: episodes of your own, a JSONL file: the row "file".
        seen: whether its values may be among those that training has seen.
        trained_on: files of episodes that the adapter was trained on, whose values it must not hold either.
        progress: called with a row's name, how many of its episodes are done, and how many it has.
        finished: called with the report so far after each row.

    Raises:
        ConfigError: a row's name is unknown, or a number is impossible.
        TrainingError: the data holds no intents, or the file no episodes, or values that training has seen.
    """
    known = ROWS if file is None else {**ROWS, "file": _own_row(file, seen=seen)}
    _check(rows, episodes, seeds, together, known)
    tokenizer = engine.tokenizer
    talk = Talk(count=lambda said: len(tokenizer.encode(said)) + 5)
    source = TrainingData(Values(training_vocabulary(tokenizer)), talk, label_texts(data))
    chunks = text_chunks(engine, text) if any(known[name].perplexity for name in rows) else []
    own = own_cases(file, source.values, seen=seen, trained_on=trained_on) if file is not None else []
    lines: list[Line] = []
    questions: list[Asked] = []
    readings: list[Reading] = []
    frozen: dict[str, str] = {}
    where = circumstances(engine)
    where |= {"episodes": f"{episodes} of each kind and seed; seeds {', '.join(map(str, seeds))}"}
    where |= {"label maps": "built-in texts" if data is None else f"intents of {data.name or data}"}
    where |= {"not measured here": "IFEval: deltamem evaluate harness --tasks ifeval"}
    report = RecallReport((), where, (), ())
    for name in dict.fromkeys(rows):
        row = _with_labels(known[name], len(source.labels.kinds["test"]))
        times = seeds[:1] if name == "file" else seeds
        each = len(own) if name == "file" else min(episodes, PLAIN) if row.plain else episodes * max(1, len(row.mixes))
        total, done = each * len(times), 0
        asked, read = list[Asked](), list[Reading]()
        for seed in times:
            key = f"recall {seed} {name}"
            if row.plain:
                if progress:
                    progress(name, done, total)
                prompts = plain_prompts(row.plain, source, random.Random(f"{key} prompts"), each)
                full = next(_groups(row, source, max(2, min(MEMORIES, episodes)), key, MEMORIES))
                asked += asked_of_full_memories(engine, name, seed, full, prompts, kind=row.plain, tokens=row.tokens)
                done += len(prompts)
                continue
            for group in _evenly(own, together) if name == "file" else _groups(row, source, episodes, key, together):
                if progress:
                    progress(name, done, total)
                if row.perplexity:
                    read += read_chunks(engine, group, chunks, start=done, seed=seed)
                else:
                    asked += _asked(engine, name, seed, group, frozen, row)
                done += len(group)
        if progress:
            progress(name, done, total)
        for figure in row.figures:
            lines.append(reading_line(name, figure, read) if row.perplexity else figure_line(name, figure, asked))
        if row.later:
            lines.append(change_line(name, "from before to after", asked))
        questions += asked
        readings += read
        report = RecallReport(tuple(lines), where, tuple(questions), tuple(readings))
        if finished:
            finished(report)
    return report


def _own_row(file: Path, *, seen: bool) -> Row:
    return Row((), (Figure(f"{file.name}{', values of training among them' if seen else ''}", None),))


def _check(rows: Sequence[str], episodes: int, seeds: Sequence[int], together: int, known: Mapping[str, Row]) -> None:
    unknown = [name for name in rows if name not in known]
    if unknown or not rows:
        raise ConfigError(f"rows are {', '.join(rows) or 'none'}, expected some of {', '.join(known)}")
    if episodes < 2 or together < 2:
        raise ConfigError(f"episodes is {episodes} and together {together}, expected 2 or more: memories are swapped")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds are {list(seeds)}, expected one or more different ones")


def _groups(row: Row, source: TrainingData, episodes: int, key: str, together: int) -> Iterator[list[Case]]:
    """The cases of a row for one seed, in groups of even sizes, so that each has somebody to swap with."""
    for number, mix in enumerate(row.mixes or (None,)):
        rng = random.Random(f"{key} {number}")
        yield from _evenly([_case(mix, source, rng) for _ in range(episodes)], together)


def _evenly(cases: Sequence[Case], together: int) -> Iterator[list[Case]]:
    groups = math.ceil(len(cases) / together)
    for group in range(groups):
        yield list(cases[group::groups])


def _case(mix: EpisodeMix | None, source: TrainingData, rng: random.Random) -> Case:
    return live_case(source.values, rng) if mix is None else Case(source.generate(mix, rng, split="test"))


def _asked(
    engine: DeltaMemEngine, name: str, seed: int, group: Sequence[Case], frozen: dict[str, str], row: Row
) -> list[Asked]:
    replies: dict[int, Sequence[str]] = {}
    kept = frozen if row.tokens == ANSWER_TOKENS else {}  # longer answers are others
    found = answers(engine, group, frozen=kept, note=replies.__setitem__, windows=row.windows, tokens=row.tokens)
    return [
        Asked(
            name,
            seed,
            case.episode.tags[0] if case.episode.tags else "own",
            case.episode.question,
            case.episode.values,
            case.episode.stale,
            answer,
            {condition: judge(text, case.episode) for condition, text in answer.items()},
            tuple(replies.get(position, ())),
        )
        for position, (case, answer) in enumerate(zip(group, found, strict=True))
    ]


def _with_labels(row: Row, held_out: int) -> Row:
    """A label map's row says how many labels there really are: no more than kinds of texts are held out."""
    if row.mixes != ROWS["labels"].mixes or held_out >= LABELS:
        return row
    title = f"label map, {held_out} labels × {EXAMPLES} examples, new texts"
    return replace(row, figures=tuple(replace(figure, title=title) for figure in row.figures))
