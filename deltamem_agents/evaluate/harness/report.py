"""The harness' figures of the frozen model and of the same model with a memory, side by side."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TypedDict, cast

from deltamem_agents.evaluate.intervals import bootstrap


class Results(TypedDict):
    """What is used of what `lm_eval.simple_evaluate` gives, all by the tasks' names."""

    results: Mapping[str, Mapping[str, object]]
    """By "metric,filter"; "alias" and the like among them."""
    higher_is_better: Mapping[str, Mapping[str, bool]]
    samples: Mapping[str, list[Mapping[str, object]]]
    """One for each document and filter, with each metric's value by its name alone."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one task."""

    task: str
    metric: str
    """As the harness names it: "metric,filter"."""
    higher_is_better: bool | None
    """None where the harness doesn't say."""
    count: int
    """Of how many documents; 0 for a group's figure."""
    frozen: float
    memory: float | None
    """None where no memory was asked for."""
    interval: tuple[float, float] | None
    """Of the difference, 95 %, paired by document; None where the metric is no mean over documents."""

    @property
    def difference(self) -> float | None:
        """With the memory less frozen."""
        return None if self.memory is None else self.memory - self.frozen


@dataclass(frozen=True, slots=True)
class Asked:
    """One document of a task and what came of it."""

    task: str
    document: int
    prompts: tuple[str, ...]
    frozen: tuple[object, ...]
    """The frozen model's replies or log-likelihoods."""
    memory: tuple[object, ...] | None
    """Those with the memory."""


@dataclass(frozen=True, slots=True)
class HarnessReport:
    """What `evaluate_harness` found, and under what circumstances."""

    figures: tuple[Figure, ...]
    circumstances: Mapping[str, str]
    asked: tuple[Asked, ...]

    def render(self) -> str:
        """The table in Markdown."""
        lines = [
            "Tasks, prompts and scores of lm-evaluation-harness: the frozen model, and the same model reading the same",
            "memory at the start of every request. Nothing is written. 95 % intervals of the difference: bootstrap,",
            "paired by document.",
            "",
            *(f"- {name}: {value}" for name, value in self.circumstances.items()),
            *self._changed(),
            "",
            "| task | metric | better | documents | frozen | with the memory | difference | 95 % interval |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for figure in self.figures:
            better = {True: "higher", False: "lower", None: "–"}[figure.higher_is_better]
            memory, difference, interval = "–", "–", "–"
            if figure.memory is not None and figure.difference is not None:
                memory, difference = f"{figure.memory:.4f}", f"{figure.difference:+.4f}"
            if figure.interval is not None:
                interval = f"{figure.interval[0]:+.4f} to {figure.interval[1]:+.4f}"
            metric = figure.metric.removesuffix(",none")
            cells = (figure.task, metric, better, figure.count or "–", f"{figure.frozen:.4f}", memory, difference)
            lines.append(f"| {' | '.join(map(str, cells))} | {interval} |")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON: every prompt with what came of it too."""
        figures = [{**asdict(figure), "difference": figure.difference} for figure in self.figures]
        return {**asdict(self), "figures": figures}

    def _changed(self) -> list[str]:
        """How many replies the memory changes at all: scores over few documents hide most of that."""
        pairs = [(a.frozen, a.memory) for a in self.asked if a.memory is not None and isinstance(a.frozen[0], str)]
        if not pairs:
            return []
        return [f"- replies that the memory changes: {sum(f != m for f, m in pairs)} of {len(pairs)}"]


def compared(circumstances: Mapping[str, str], frozen: Results, memory: Results | None) -> HarnessReport:
    """Puts the harness' results with a memory beside those of the frozen model; None: there are none to put there."""
    figures = [
        found
        for task, values in frozen["results"].items()
        for metric, value in values.items()
        if isinstance(value, int | float) and _is_figure(metric)
        if (found := _figure(task, metric, float(value), frozen, memory)) is not None
    ]
    asked = []
    for task in frozen["samples"]:
        ours = dict(_replies(task, memory)) if memory else {}
        prompts = {_document(sample): sample["arguments"] for sample in frozen["samples"][task]}
        for document, replies in dict(_replies(task, frozen)).items():
            asked.append(Asked(task, document, _prompts(prompts[document]), replies, ours.get(document)))
    return HarnessReport(tuple(figures), circumstances, tuple(asked))


def _is_figure(metric: str) -> bool:
    name, filtered, _ = metric.partition(",")
    return bool(filtered) and not name.endswith("_stderr")


def _figure(task: str, metric: str, value: float, frozen: Results, memory: Results | None) -> Figure | None:
    before = _values(task, metric, frozen)
    if value == -1 and set(before) == {-1.0}:
        return None  # RULER's sign for a length that it was not asked for
    other = None if memory is None else float(str(memory["results"][task][metric]))
    interval = None
    if memory is not None and other is not None:
        after = _values(task, metric, memory)
        if _is_mean(value, before) and _is_mean(other, after):
            interval = bootstrap([m - f for f, m in zip(before, after, strict=True)])
    better = frozen["higher_is_better"].get(task, {}).get(metric.partition(",")[0])
    return Figure(task, metric, better, len(_of_filter(task, metric, frozen)), value, other, interval)


def _of_filter(task: str, metric: str, found: Results) -> list[Mapping[str, object]]:
    return [s for s in found["samples"].get(task, []) if s["filter"] == metric.partition(",")[2]]


def _values(task: str, metric: str, found: Results) -> list[float]:
    """The metric of each document, where it is a number."""
    values = [sample.get(metric.partition(",")[0]) for sample in _of_filter(task, metric, found)]
    return [float(value) for value in values if isinstance(value, int | float)]


def _is_mean(value: float, values: list[float]) -> bool:
    return bool(values) and math.isclose(value, sum(values) / len(values), rel_tol=1e-6, abs_tol=1e-9)


def _replies(task: str, found: Results) -> Iterator[tuple[int, tuple[object, ...]]]:
    for sample in found["samples"][task]:
        yield (
            _document(sample),
            tuple(reply for request in cast("list[list[object]]", sample["resps"]) for reply in request),
        )


def _document(sample: Mapping[str, object]) -> int:
    return cast("int", sample["doc_id"])


def _prompts(arguments: object) -> tuple[str, ...]:
    """Of each request the text that the model was given first, without the continuation that was scored."""
    return tuple(str(request[0]) for request in cast("list[tuple[object, ...]]", arguments))
