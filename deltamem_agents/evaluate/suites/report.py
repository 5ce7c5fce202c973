"""The tables of a suite: every condition with its cost, what a memory adds to each, and the categories."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

from deltamem_agents.evaluate.suites.conditions import CONDITIONS, GAINS, Cell
from deltamem_agents.evaluate.suites.measures import Figure, Table, categories, counted_nats, ranked_first, score
from deltamem_agents.evaluate.suites.records import Record


@dataclass(frozen=True)
class SuiteReport:
    """What `evaluate_suite` found, and under what circumstances.

    Raises:
        ConfigError: from its methods: the conditions were asked different questions, or are over their budget.
    """

    title: str
    circumstances: Mapping[str, str]
    records: tuple[Record, ...]

    @cached_property
    def table(self) -> Table:
        """The records as a table."""
        return Table(self.records)

    @property
    def measures(self) -> tuple[str, ...]:
        """The suite's own measures, the benchmark's first."""
        return tuple(self.records[0].scores) if self.records else ()

    def lines(self) -> list[dict[str, object]]:
        """One line a cell, as plain data: figures with intervals, and what it costs."""
        return [self._line(cell) for cell in self.table.cells]

    def gains(self) -> list[dict[str, object]]:
        """What the own memory adds to each condition without one, and what another conversation's does."""
        found: list[dict[str, object]] = []
        for base in self.table.cells:
            names = GAINS.get(base.condition)
            pair = [Cell(name, base.budget) for name in names or ()]
            if names is None or any(cell not in self.table.cells for cell in pair):
                continue
            own, swapped = pair
            found.append(
                {
                    "added_to": base.condition,
                    "budget": base.budget,
                    "recovery": _plain(self.table.recovery(own, over=base)),
                    "recovery_swapped": _plain(self.table.recovery(swapped, over=base)),
                    "evidence_recovery": _plain(self.table.recovery(own, over=base, of="evidence")),
                    "evidence_recovery_swapped": _plain(self.table.recovery(swapped, over=base, of="evidence")),
                    "nats": _plain(self.table.difference(own, base, counted_nats)),
                    "nats_swapped": _plain(self.table.difference(swapped, base, counted_nats)),
                    "swap_gap_nats": _plain(self.table.difference(swapped, own, counted_nats)),
                    "ranked": _plain(self.table.difference(own, base, ranked_first)),
                    "ranked_swapped": _plain(self.table.difference(swapped, base, ranked_first)),
                    **{
                        f"{name}{suffix}": _plain(self.table.difference(cell, base, score(name)))
                        for name in self.measures[:1]
                        for suffix, cell in (("", own), ("_swapped", swapped))
                    },
                }
            )
        return found

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON and for plots; the single questions are in the run's `records.jsonl`."""
        return {
            "title": self.title,
            "circumstances": dict(self.circumstances),
            "lines": self.lines(),
            "gains": self.gains(),
            "categories": self._categories(),
        }

    def render(self) -> str:
        """The tables in Markdown."""
        conversations = len({record.conversation for record in self.records})
        questions = len({record.question for record in self.records})
        recalled = len({record.question for record in self.records if record.recalls})
        lines = [
            f"{self.title}.",
            "",
            f"{questions} questions about {conversations} conversations; recovery and NLL over the {recalled} whose",
            "right answer the conversation makes likelier. 95 % bootstrap intervals, paired, drawn by conversation.",
            "Recovery = (NLL none − NLL) / (NLL none − NLL full), NLL in nats a token of the right answer. Evidence:",
            "the same, with what seeing the evidence alone gives in the place of full. A dash: that does not help the",
            "frozen model. The control with an empty state still writes the question itself, as it passes.",
            "",
            *(f"- {name}: {value}" for name, value in self.circumstances.items()),
            "",
            *self._main_table(),
            "",
            *self._gain_table(),
            "",
            *self._category_table(),
        ]
        return "\n".join(lines)

    def _line(self, cell: Cell) -> dict[str, object]:
        records = list(self.table.cells[cell].values())

        def average(value: Callable[[Record], float]) -> float:
            return sum(map(value, records)) / len(records)

        shares = [record.evidence_share for record in records if record.evidence_share is not None]
        return {
            "condition": cell.condition,
            "title": CONDITIONS[cell.condition].title,
            "budget": cell.budget,
            "questions": len(records),
            "recovery": _plain(self.table.recovery(cell)),
            "evidence_recovery": _plain(self.table.recovery(cell, of="evidence")),
            "nats": _plain(self.table.mean(cell, counted_nats)),
            "ranked": _plain(self.table.mean(cell, ranked_first)),
            **{name: _plain(self.table.mean(cell, score(name))) for name in self.measures},
            "prompt_tokens": average(lambda r: r.prompt_tokens),
            "visible_tokens": average(lambda r: r.visible_tokens),
            "evidence_share": sum(shares) / len(shares) if shares else None,
            "seconds": average(lambda r: r.seconds),
            "kept_bytes": average(lambda r: r.kept_bytes),
        }

    def _categories(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for cell, records in self.table.cells.items():
            for name in categories(records):
                chosen = [r for r in records.values() if r.category == name]
                values = {m: _plain(self.table.mean(cell, score(m), of=name)) for m in self.measures}
                ranked = _plain(self.table.mean(cell, ranked_first, of=name))
                row = {"condition": cell.condition, "budget": cell.budget, "category": name, "questions": len(chosen)}
                found.append({**row, **values, "ranked": ranked})
        return found

    def _main_table(self) -> list[str]:
        names = [*self.measures, *(["ranked first"] if self._ranks else [])]
        head = ["condition", "B", "recovery", *(["of evidence"] if self._evident else []), "NLL", *names]
        head += ["prompt tokens", "evidence visible", "s a question", "bytes kept"]
        rows = []
        for line in self.lines():
            values = [_percent(line[name]) for name in (*self.measures, *(["ranked"] if self._ranks else []))]
            share = line["evidence_share"]
            cost = [f"{line['prompt_tokens']:,.0f}", "–" if share is None else f"{share:.0%}"]
            cost += [f"{line['seconds']:.2f}", f"{line['kept_bytes']:,.0f}"]
            recovered = [_percent(line[key]) for key in self._recoveries]
            row = [str(line["title"]), str(line["budget"] or ""), *recovered, _number(line["nats"])]
            rows.append([*row, *values, *cost])
        return _markdown(head, rows)

    def _gain_table(self) -> list[str]:
        names = {"evidence_recovery": "of evidence", "nats": "NLL (less is better)", "ranked": "ranked first"}
        keys = [*self._recoveries, "nats", *self.measures[:1], *(["ranked"] if self._ranks else [])]
        head = ["a memory added to", "B"]
        for key in keys:
            head += [f"{names.get(key, key)}: own", "another's"]
        rows = []
        for gain in self.gains():
            row = [CONDITIONS[str(gain["added_to"])].title, str(gain["budget"] or "")]
            for key in keys:
                pair = gain[key], gain[f"{key}_swapped"]
                row += [_number(found, sign="+") if key == "nats" else _points(found) for found in pair]
            rows.append([*row, _number(gain["swap_gap_nats"], sign="+")])
        return _markdown([*head, "NLL: another's − own"], rows) if rows else []

    def _category_table(self) -> list[str]:
        names = sorted({record.category for record in self.records})
        if len(names) < 2 or not self.measures:
            return []
        key = "ranked" if self._ranks and self._all_rank else self.measures[0]
        found = {(row["condition"], row["budget"], row["category"]): row for row in self._categories()}
        counts = Counter(record.category for record in next(iter(self.table.cells.values())).values())
        head = ["ranked first" if key == "ranked" else key, "B", *(f"{name} ({counts[name]})" for name in names)]
        rows = [
            [CONDITIONS[c.condition].title, str(c.budget or "")]
            + [_percent(found[c.condition, c.budget, name][key], interval=False) for name in names]
            for c in self.table.cells
        ]
        return _markdown(head, rows)

    @cached_property
    def _evident(self) -> bool:
        return Cell("evidence", None) in self.table.cells

    @property
    def _recoveries(self) -> list[str]:
        return ["recovery", *(["evidence_recovery"] if self._evident else [])]

    @cached_property
    def _ranks(self) -> bool:
        return any(record.ranked_first is not None for record in self.records)

    @cached_property
    def _all_rank(self) -> bool:
        return all(record.ranked_first is not None for record in self.records)


def _plain(figure: Figure | None) -> dict[str, float | None] | None:
    return None if figure is None else asdict(figure)


def _percent(figure: object, *, interval: bool = True) -> str:
    negative = isinstance(figure, dict) and figure["low"] is not None and figure["low"] < 0
    return _shown(figure, "{:.1f} %", "{:.0f} to {:.0f}" if negative else "{:.0f}–{:.0f}", scale=100, interval=interval)


def _points(figure: object) -> str:
    return _shown(figure, "{:+.1f}", "{:+.1f} to {:+.1f}", scale=100)


def _number(figure: object, *, sign: str = "") -> str:
    return _shown(figure, f"{{:{sign}.3f}}", f"{{:{sign}.2f}} to {{:{sign}.2f}}")


def _shown(figure: object, value: str, bounds: str, *, scale: float = 1, interval: bool = True) -> str:
    """A figure with its interval; a dash where there is none."""
    if not isinstance(figure, dict):
        return "–"
    text = value.format(figure["value"] * scale)
    if not interval or figure["low"] is None:
        return text
    return f"{text} ({bounds.format(figure['low'] * scale, figure['high'] * scale)})"


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
