"""A long conversation with a window and a memory, and the same with its whole history in every prompt.

Its first turns tell facts, which both are asked for at the end.
"""

import dataclasses
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltamem_agents.backbone.load import BUNDLED
from deltamem_agents.bench.machine import describe
from deltamem_agents.bench.questions import ANSWER_TOKENS, Asked, Told, ask, draw_facts, render_answers
from deltamem_agents.bench.subject import Subject, load_subject
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.messages import MessageLike
from deltamem_agents.plots import Curve, Panel, require_matplotlib, save_plot

EVERY, AROUND = 20, 10
"""The table has a line for every 20th turn, with medians over the 10 turns that end there."""
REPLY_TOKENS = 8
TURN_MARKERS = 8
"""What a chat template puts around a message, at most, and what the engine leaves behind a reply."""
SESSION, ANOTHER = "conversation", "somebody else"


@dataclass(frozen=True, slots=True)
class TurnCost:
    """What one turn took."""

    turn: int
    """Counted from 1."""
    seconds: float
    """Wall time of the call, engine and store included."""
    prompt_tokens: int
    cached_tokens: int
    """How many of the prompt's tokens were in the KV cache already."""
    store_bytes: int
    """Size of the store's files after the turn, the write-ahead log included, which SQLite empties now and then."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation, turn by turn."""

    name: str
    turns: tuple[TurnCost, ...]
    ended: str
    """Why it has no more turns."""

    def lately(self, turn: int) -> tuple[TurnCost, ...]:
        """The turns that end with this one; none if it was not reached."""
        reached = turn <= len(self.turns)
        return self.turns[max(0, turn - AROUND) : turn] if reached else ()


@dataclass(frozen=True, slots=True)
class ConversationReport:
    """One run on one machine."""

    setup: dict[str, str]
    conversations: tuple[Conversation, ...]
    asked: tuple[Asked, ...] = ()
    """The facts of the first turns, asked for after the last."""

    def render(self) -> str:
        """The tables, as Markdown."""
        lines = [f"- {name}: {value}" for name, value in self.setup.items()]
        lines += [f"- {c.name}: {len(c.turns)} turns, {c.ended}" for c in self.conversations]
        about = f"median and slowest of {AROUND} turns, s"
        lines += [
            "",
            f"| turn | conversation | {about} | prompt tokens | of them cached | store with its write-ahead log, KB |",
        ]
        lines += ["|---|---|---|---|---|---|"]
        last = max(len(c.turns) for c in self.conversations)
        for turn in sorted({*range(EVERY, last + 1, EVERY), last}):
            lines += [_line(turn, c.name, c.lately(turn)) for c in self.conversations if c.lately(turn)]
        if self.asked:
            lines += ["", render_answers(self.asked)]
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Everything, with all turns."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)

    def save(self, folder: Path) -> None:
        """Writes conversation.md, conversation.json and conversation.png into a folder.

        Raises:
            ConfigError: matplotlib is not installed.
            OSError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "conversation.md").write_text(self.render(), encoding="utf-8")
        (folder / "conversation.json").write_text(self.to_json() + "\n", encoding="utf-8")
        panels = [_panel(self.conversations, label, field) for field, label in _PLOTTED.items()]
        save_plot(folder / "conversation.png", panels, title="A conversation, turn by turn")


_PLOTTED = {"seconds": "seconds a turn", "prompt_tokens": "prompt tokens"}


def run_conversation(
    *,
    turns: int = 200,
    recent: int = 8,
    keep: int = 64,
    full_turns: int | None = None,
    facts: int = 4,
    seed: int = 0,
    output: Path | None = None,
    model: str | Path = BUNDLED,
) -> ConversationReport:
    """Holds a conversation with a window of `recent` messages, and the same with all of its history in the prompt.

    The two take turns, so that both see the same machine, and say the same. The full history ends where the model's
    context has no room for more than a question. The first turns tell facts; at the end both are asked for them, and so
    are the memory without the window, somebody else's memory, and the frozen model with and without either history.

    Args:
        turns: how many.
        recent: the window holds this many to twice as many messages.
        keep: how many snapshots the store keeps of the windowed conversation.
        full_turns: how many turns with the full history; None: as many as the others.
        facts: how many of the first turns tell a fact.
        seed: of what is said.
        output: also write table, samples and a plot into this folder.
        model: "bundled", or a folder.

    Raises:
        BackboneError: the model cannot be loaded.
        ConfigError: a count is not positive, there are more facts than turns or attributes, or `output` needs
            matplotlib, which is not installed.
        OSError: `output` cannot be written.
    """
    if turns < 1 or (full_turns is not None and full_turns < 0):
        raise ConfigError(f"turns is {turns} and full_turns {full_turns}: expected at least 1, and at least 0")
    if facts > (shortest := min(turns, full_turns or turns)):
        raise ConfigError(f"facts is {facts}, but a conversation has {shortest} turns: expected a turn for each fact")
    told = draw_facts(facts, seed=seed)
    if output is not None:
        require_matplotlib()
    subject = load_subject(model, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        windowed = _Arm(subject, Path(folder) / "window.db", told, recent=recent, keep=keep)
        whole = _Arm(subject, Path(folder) / "full.db", told, recent=2 * turns + 1, keep=turns)
        most = turns if full_turns is None else full_turns
        with windowed.engine, whole.engine:
            _alternate((windowed, turns), (whole, most), told=told, seed=seed)
            asked = _ask(windowed, whole, told)
    setup = {**describe(subject, model, seed=seed), "reply": f"at most {REPLY_TOKENS} tokens"}
    kept = f"window of {recent} to {2 * recent} messages"
    conversations = (windowed.conversation(kept), whole.conversation("full history"))
    report = ConversationReport(setup, conversations, tuple(asked))
    if output is not None:
        report.save(output)
    return report


class _Arm:
    """One of the conversations on its way."""

    def __init__(self, subject: Subject, path: Path, told: Sequence[Told], *, recent: int, keep: int) -> None:
        self.path, self.recent = path, recent
        self.engine = DeltaMemEngine(
            subject.model, subject.tokenizer, store=path, recent_messages=recent, keep_snapshots=keep
        )
        longest = max((self.engine.count_tokens([_user(fact.question)]) for fact in told), default=0)
        self.room = longest + ANSWER_TOKENS + REPLY_TOKENS + 2 * TURN_MARKERS
        self.costs: list[TurnCost] = []
        self.said: list[MessageLike] = []
        self.full: str | None = None

    def say(self, text: str) -> None:
        """Takes a turn and notes what it took, unless the context can't hold it all and a question after it."""
        said = [_user(text)]
        shows_all = len(self.said) < self.recent
        if shows_all and self.engine.count_tokens([*self.said, *said]) + self.room > self.engine.context:
            self.full = f"then the context of {self.engine.context} tokens has room for a question only"
            return
        start = time.perf_counter()
        turn = self.engine.generate(said, session=SESSION, max_new_tokens=REPLY_TOKENS)
        seconds = time.perf_counter() - start
        self.said += [*said, {"role": "assistant", "content": turn.reply.content}]
        size = sum(p.stat().st_size for p in self.path.parent.glob(f"{self.path.name}*"))
        usage, number = turn.usage, len(self.costs) + 1
        self.costs.append(TurnCost(number, seconds, usage.prompt_tokens, usage.cached_tokens, size))

    def conversation(self, name: str) -> Conversation:
        return Conversation(name, tuple(self.costs), self.full or "as many as asked for")


def _alternate(*arms: tuple[_Arm, int], told: Sequence[Told], seed: int) -> None:
    draw = random.Random(seed)
    turns = max(turns for _, turns in arms)
    said = [fact.statement for fact in told] + [note(draw, number) for number in range(len(told) + 1, turns + 1)]
    for number, text in enumerate(said):
        for arm, turns in arms if number % 2 == 0 else arms[::-1]:
            if number < turns and arm.full is None:
                arm.say(text)


def _ask(windowed: _Arm, whole: _Arm, told: Sequence[Told]) -> list[Asked]:
    """Asks with each history and memory, and with controls that lack one or both."""
    engine, turn, last = windowed.engine, len(windowed.costs), windowed.said[-2 * windowed.recent :]
    for fact in told:
        engine.absorb([_user(fact.another)], session=ANOTHER)
    shown = last if windowed.recent else []
    asked = [
        *ask(engine, told, "window and memory", turn=turn, session=SESSION),
        *ask(engine, told, "memory alone", turn=turn, session=SESSION, recent=0),
        *ask(engine, told, "somebody else's memory alone", turn=turn, session=ANOTHER, recent=0),
        *ask(engine, told, f"frozen model, last {2 * windowed.recent} messages", turn=turn, shown=shown),
        *ask(engine, told, "frozen model alone", turn=0),
    ]
    if whole.costs:
        turn = len(whole.costs)
        asked += ask(whole.engine, told, "full history, and memory", turn=turn, session=SESSION)
        asked += ask(whole.engine, told, "frozen model, full history", turn=turn, shown=whole.said)
    return asked


def _user(text: str) -> MessageLike:
    return {"role": "user", "content": text}


def note(draw: random.Random, number: int) -> str:
    """A line of stock, of which nothing is asked."""
    colour, thing = draw.choice(("blue", "red", "green", "grey")), draw.choice(("beads", "maps", "lamps", "bowls"))
    return f"Note {number:03}: shelf {draw.randrange(1000, 10000)} holds {draw.randrange(10, 100)} {colour} {thing}."


def _line(turn: int, name: str, costs: Sequence[TurnCost]) -> str:
    seconds = [c.seconds for c in costs]
    prompt, cached = (statistics.median(getattr(c, f) for c in costs) for f in ("prompt_tokens", "cached_tokens"))
    times = f"{statistics.median(seconds):.2f}, {max(seconds):.2f}"
    return f"| {turn} | {name} | {times} | {prompt:.0f} | {cached:.0f} | {costs[-1].store_bytes / 1024:.0f} |"


def _panel(conversations: Sequence[Conversation], label: str, field: str) -> Panel:
    curves = []
    for c in conversations:
        turns = [cost.turn for cost in c.turns]
        values = [float(getattr(cost, field)) for cost in c.turns]
        medians = [statistics.median(values[max(0, turn - AROUND) : turn]) for turn in turns]
        curves.append(Curve(label=c.name, x=turns, y=values, faint=True))
        curves.append(Curve(label=c.name, x=turns, y=medians))
    return Panel(x_label="turn", y_label=f"{label} (thin), median of {AROUND}", curves=tuple(curves))
