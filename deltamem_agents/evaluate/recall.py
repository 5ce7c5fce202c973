"""Recall from the state alone, as a user would meet it: facts told live, free greedy answers, controls beside them."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.asking import answers
from deltamem_agents.evaluate.cases import Case, label_texts, live_case
from deltamem_agents.evaluate.judging import judge
from deltamem_agents.evaluate.perplexity import Reading, read_chunks, text_chunks
from deltamem_agents.evaluate.report import (
    Asked,
    Line,
    RecallReport,
    change_line,
    circumstances,
    figure_line,
    reading_line,
)
from deltamem_agents.evaluate.rows import EXAMPLES, LABELS, ROWS, Row
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
        progress: called with a row's name, how many of its episodes are done, and how many it has.
        finished: called with the report so far after each row.

    Raises:
        ConfigError: a row's name is unknown, or a number is impossible.
        TrainingError: the data holds no intents.
    """
    _check(rows, episodes, seeds, together)
    tokenizer = engine.tokenizer
    talk = Talk(count=lambda said: len(tokenizer.encode(said)) + 5)
    source = TrainingData(Values(training_vocabulary(tokenizer)), talk, label_texts(data))
    chunks = text_chunks(engine, text) if any(ROWS[name].perplexity for name in rows) else []
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
        row = _with_labels(ROWS[name], len(source.labels.kinds["test"]))
        total = episodes * len(seeds) * max(1, len(row.mixes))
        done, asked, read = 0, list[Asked](), list[Reading]()
        for seed in seeds:
            for group in _groups(row, source, episodes, f"recall {seed} {name}", together):
                if progress:
                    progress(name, done, total)
                if row.perplexity:
                    read += read_chunks(engine, group, chunks, start=done, seed=seed)
                else:
                    asked += _asked(engine, name, seed, group, frozen)
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


def _check(rows: Sequence[str], episodes: int, seeds: Sequence[int], together: int) -> None:
    unknown = [name for name in rows if name not in ROWS]
    if unknown or not rows:
        raise ConfigError(f"rows are {', '.join(rows) or 'none'}, expected some of {', '.join(ROWS)}")
    if episodes < 2 or together < 2:
        raise ConfigError(f"episodes is {episodes} and together {together}, expected 2 or more: memories are swapped")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds are {list(seeds)}, expected one or more different ones")


def _groups(row: Row, source: TrainingData, episodes: int, key: str, together: int) -> Iterator[list[Case]]:
    """The cases of a row for one seed, in groups of even sizes, so that each has somebody to swap with."""
    for number, mix in enumerate(row.mixes or (None,)):
        rng = random.Random(f"{key} {number}")
        cases = [_case(mix, source, rng) for _ in range(episodes)]
        groups = math.ceil(episodes / together)
        for group in range(groups):
            yield cases[group::groups]


def _case(mix: EpisodeMix | None, source: TrainingData, rng: random.Random) -> Case:
    return live_case(source.values, rng) if mix is None else Case(source.generate(mix, rng, split="test"))


def _asked(
    engine: DeltaMemEngine, name: str, seed: int, group: Sequence[Case], frozen: dict[str, str]
) -> list[Asked]:
    replies: dict[int, Sequence[str]] = {}
    found = answers(engine, group, frozen=frozen, note=replies.__setitem__)
    return [
        Asked(
            name,
            seed,
            case.episode.tags[0],
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
