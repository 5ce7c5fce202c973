"""Runs a suite: every question under every condition, with the same template, decoding and budget."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from deltamem_agents.backbone.int8 import kind_of_weights
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.engine.prompts import PromptWriter
from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.report import circumstances
from deltamem_agents.evaluate.suites.conditions import BUDGETS, CONDITIONS, Cell, Condition, cells
from deltamem_agents.evaluate.suites.contexts import Contexts, require_bm25
from deltamem_agents.evaluate.suites.conversation import Conversation, Question, Suite, user
from deltamem_agents.evaluate.suites.memories import Memories, shuffled
from deltamem_agents.evaluate.suites.reading import TOGETHER, Asking, Reader, Reading
from deltamem_agents.evaluate.suites.records import KeptTexts, Record, RecordFile
from deltamem_agents.evaluate.suites.report import SuiteReport
from deltamem_agents.evaluate.suites.summary import rolling_summary, summary_message
from deltamem_agents.messages import Message
from deltamem_agents.state import MemoryState

Progress = Callable[[str, int, int], None]
LONG = 256
"""Messages: a run that is stopped loses no more than the cell that it was at, of so much talk."""
MARGIN = 16
"""Tokens of the context that stay free, for what a template puts around a reply."""


def evaluate_suite(
    engine: DeltaMemEngine,
    suite: Suite,
    *,
    conditions: Sequence[str] = tuple(CONDITIONS),
    budgets: Sequence[int] = BUDGETS,
    seed: int = 0,
    limits: str = "all questions",
    output: Path | None = None,
    progress: Progress | None = None,
) -> SuiteReport:
    """Asks every question under every condition.

    A conversation is absorbed once, through the engine, into a session `evaluate-…` that stays in the engine's store.
    With an `output` and a store that lasts, a run that was stopped goes on where it was.

    Args:
        engine: the engine. With `recent_messages=0` each part of a conversation is read by itself.
        suite: the questions; `limited` makes it smaller.
        conditions: names of `CONDITIONS`.
        budgets: tokens of the conversation that may be visible, for the conditions that have a budget.
        seed: shuffles states.
        limits: for the report: how the suite was made smaller.
        output: a folder for `records.jsonl` and `texts.jsonl`; None: nothing is written.
        progress: called with the conversation's name, how many cells are done, and how many there are in all.

    Raises:
        ConfigError: an unknown condition, a bad budget, nobody to swap with, or an output of another run.
    """
    chosen = tuple(dict.fromkeys(conditions))
    _check(engine, suite, chosen, budgets)
    setup = {
        "suite": suite.name,
        "questions": limits,
        "seed": seed,
        "data": _digest([_plain(talk) for talk in suite.conversations]),
        "template": _digest(engine.tokenizer.chat_template),
        "decoding": f"greedy, at most {suite.answer_tokens} tokens",
        "fingerprint": engine.fingerprint,
        "dtype": kind_of_weights(engine.model.backbone),
    }
    records = RecordFile(None if output is None else output / "records.jsonl", setup)
    texts = KeptTexts(None if output is None else output / "texts.jsonl")
    run = _Run(engine, suite, texts, seed=seed)
    todo = cells(chosen, tuple(dict.fromkeys(budgets)))
    done = 0
    for talks in _together(suite.conversations):
        for cell in todo:
            if progress:
                progress(talks[0].name, done, len(todo) * len(suite.conversations))
            missing = [(talk, [q for q in talk.questions if (q.id, cell) not in records]) for talk in talks]
            records.add(run.asked([(talk, questions) for talk, questions in missing if questions], cell))
            done += len(talks)
    if progress:
        progress(suite.name, done, done)
    ids = {question.id for talk in suite.conversations for question in talk.questions}
    wanted = sorted((r for r in records if r.question in ids and r.cell in todo), key=lambda r: todo.index(r.cell))
    return SuiteReport(suite.title, circumstances(engine) | {k: str(v) for k, v in setup.items()}, tuple(wanted))


class _Run:
    """What a run holds from one cell to the next."""

    def __init__(self, engine: DeltaMemEngine, suite: Suite, texts: KeptTexts, *, seed: int) -> None:
        self._engine, self._suite, self._texts, self._seed = engine, suite, texts, seed
        self._writer = PromptWriter(ChatTemplate(engine.tokenizer), engine.model.adapter.config)
        self._reader = Reader(engine, self._writer, answer_tokens=suite.answer_tokens)
        self._memories = Memories(engine, prefix=f"evaluate-{suite.name}")
        self._contexts: dict[str, Contexts] = {}
        self._spoilt: dict[str, MemoryState] = {}
        talks = suite.conversations
        self._others = {talk.name: other for talk, other in zip(talks, [*talks[1:], *talks[:1]], strict=True)}

    def asked(self, groups: Sequence[tuple[Conversation, Sequence[Question]]], cell: Cell) -> list[Record]:
        """Records of conversations' questions in one cell."""
        condition = CONDITIONS[cell.condition]
        known = [(talk, self._with_references(talk, questions)) for talk, questions in groups]
        askings = [[self._asking(talk, q, condition, cell.budget) for q in questions] for talk, questions in known]
        readings = self._read([[asking for asking, _ in group] for group in askings])
        return [
            self._record(talk, question, cell, reading, asking, places)
            for (talk, questions), asked, read in zip(known, askings, readings, strict=True)
            for question, (asking, places), reading in zip(questions, asked, read, strict=True)
        ]

    def _context(self, talk: Conversation) -> Contexts:
        if talk.name not in self._contexts:
            self._contexts[talk.name] = Contexts(self._writer, talk)
        return self._contexts[talk.name]

    def _read(self, groups: Sequence[Sequence[Asking]]) -> list[list[Reading]]:
        return self._engine.on_session("evaluate", partial(self._reader.read, groups))

    def _asking(
        self, talk: Conversation, question: Question, condition: Condition, budget: int | None
    ) -> tuple[Asking, tuple[int, ...]]:
        """How a question is put, and the positions of the messages that are visible."""
        contexts, asked = self._context(talk), user(question.text)
        places = self._places(talk, question, condition, budget)
        visible = tuple(contexts.messages[place] for place in places)
        if condition.visible == "summary":
            assert budget is not None
            visible = self._summary(talk, budget)
        texts = tuple(dict.fromkeys([*question.answers[:1], *question.candidates]))
        in_window = condition.visible == "window" and condition.memory != "off"
        state = self._state(talk, condition, start=places[0] if in_window and places else len(contexts.lengths))
        if in_window:  # as the engine does it: the state at the window's start, and the window written again
            return Asking((), (*visible, asked), state, texts), places
        return Asking(visible, (asked,), state, texts), places

    def _places(
        self, talk: Conversation, question: Question, condition: Condition, budget: int | None
    ) -> tuple[int, ...]:
        contexts = self._context(talk)
        match condition.visible:
            case "window":
                return contexts.recent(budget or 0)
            case "bm25":
                return contexts.found(question.text, budget or 0)
            case "evidence":
                return contexts.fitting(question.evidence, self._room(talk))
            case "full":
                return contexts.recent(self._room(talk))
        return ()

    def _room(self, talk: Conversation) -> int:
        """Tokens of the context that the longest question with its answers leaves."""
        encode = self._engine.tokenizer.encode
        longest = max(self._engine.count_tokens([user(q.text)]) for q in talk.questions)
        texts = [text for q in talk.questions for text in (*q.answers, *q.candidates)]
        answer = max([self._suite.answer_tokens, *(len(encode(text)) for text in texts)])
        return self._engine.context - longest - answer - MARGIN

    def _state(self, talk: Conversation, condition: Condition, *, start: int) -> MemoryState | None:
        """The memory that is read before the message at `start`."""
        match condition.memory:
            case "off":
                return None
            case "zero":
                return self._memories.empty
            case "swapped":
                return self._memories.after(self._others[talk.name])
            case "shuffled":
                return self._shuffled(talk.name, self._memories.after(talk))
            case "own":
                return self._memories.before(talk, start)

    def _shuffled(self, name: str, state: MemoryState) -> MemoryState:
        if name not in self._spoilt:
            self._spoilt[name] = shuffled(state, seed=self._seed)
        return self._spoilt[name]

    def _summary(self, talk: Conversation, budget: int) -> tuple[Message, ...]:
        name = f"summary {budget} {talk.name}"
        if name not in self._texts:
            self._texts[name] = rolling_summary(self._engine, self._context(talk), budget=budget)
        return (summary_message(self._texts[name]),) if self._texts[name] else ()

    def _with_references(self, talk: Conversation, questions: Sequence[Question]) -> list[Question]:
        """Questions without a right answer get what the frozen model says when it sees all that fits."""
        names = {question.id: f"reference {question.id}" for question in questions if not question.answers}
        missing = [q for q in questions if q.id in names and names[q.id] not in self._texts]
        askings = [self._asking(talk, question, CONDITIONS["full"], None)[0] for question in missing]
        for question, reading in zip(missing, self._read([askings])[0] if askings else [], strict=True):
            self._texts[names[question.id]] = reading.answer.strip() or "-"
        return [replace(q, answers=(self._texts[names[q.id]],)) if q.id in names else q for q in questions]

    def _record(
        self,
        talk: Conversation,
        question: Question,
        cell: Cell,
        reading: Reading,
        asking: Asking,
        places: Sequence[int],
    ) -> Record:
        condition, visible = CONDITIONS[cell.condition], self._context(talk).tokens(places)
        if condition.visible == "summary" and asking.shown:
            visible = sum(self._writer.render(asking.shown, (), write=False).lengths)
        right, candidates = question.answers[0], [asking.texts.index(text) for text in question.candidates]
        first = min(candidates, key=lambda place: reading.nats[place], default=None)
        evidence = set(question.evidence)
        return Record(
            conversation=talk.name,
            question=question.id,
            category=question.category,
            condition=cell.condition,
            budget=cell.budget,
            answer=reading.answer,
            scores=dict(self._suite.score(reading.answer, question)),
            nats=reading.nats[0],
            recalls=question.recalls,
            ranked_first=None if first is None else asking.texts[first] == right,
            prompt_tokens=reading.prompt_tokens,
            visible_tokens=visible,
            evidence_share=len(evidence & set(places)) / len(evidence) if evidence else None,
            seconds=reading.seconds,
            kept_bytes=self._kept(talk, condition, asking, places),
        )

    def _kept(self, talk: Conversation, condition: Condition, asking: Asking, places: Sequence[int]) -> int:
        texts: Iterator[Message] = iter(talk.messages[place] for place in places)
        if condition.visible == "bm25":
            texts = iter(talk.messages)
        elif condition.visible == "summary":
            texts = iter(asking.shown)
        state = 0 if asking.state is None else len(asking.state.to_bytes(fingerprint=self._engine.fingerprint))
        return sum(len(message.content.encode()) for message in texts) + state


def _plain(talk: Conversation) -> list[object]:
    """What a conversation tells and asks."""
    asked = [[q.id, q.text, q.answers, q.candidates] for q in talk.questions]
    return [talk.name, [message.digest() for message in talk.messages], asked]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _together(talks: Sequence[Conversation]) -> Iterator[list[Conversation]]:
    """Consecutive conversations whose questions decode together; long ones are done one by one."""
    group: list[Conversation] = []
    for talk in talks:
        group.append(talk)
        questions, told = (
            sum(map(len, found)) for found in zip(*((m.questions, m.messages) for m in group), strict=True)
        )
        if questions >= TOGETHER or told >= LONG:
            yield group
            group = []
    if group:
        yield group


def _check(engine: DeltaMemEngine, suite: Suite, conditions: Sequence[str], budgets: Sequence[int]) -> None:
    unknown = [name for name in conditions if name not in CONDITIONS]
    if unknown or not conditions:
        raise ConfigError(f"conditions are {', '.join(conditions) or 'none'}, expected some of {', '.join(CONDITIONS)}")
    budgeted = any(CONDITIONS[name].budgeted for name in conditions)
    if budgeted and (not budgets or min(budgets) < 1 or 3 * max(budgets) > engine.context):
        raise ConfigError(
            f"budgets are {list(budgets)}, expected some of 1 to {engine.context // 3} tokens: a prompt must fit the "
            f"context of {engine.context}, with room for the question, the answer and what is summarised"
        )
    swaps = [name for name in conditions if CONDITIONS[name].memory == "swapped"]
    if swaps and len(suite.conversations) < 2:
        raise ConfigError(
            f"{suite.name} has {len(suite.conversations)} conversation, expected 2 or more for {', '.join(swaps)}: "
            "memories are swapped; take more conversations, or leave these conditions out"
        )
    if any(CONDITIONS[name].visible == "bm25" for name in conditions):
        require_bm25()
