"""An episode: what was said earlier, and a question that only the memory of it can answer. As data, and as files."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deltamem_agents.errors import TrainingError
from deltamem_agents.messages import Message

UNKNOWN = "don't know"
"""What an answer contains that admits to know nothing."""


class Exchange(BaseModel):
    """A question and the right answer to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str = Field(min_length=1)
    """What the user asks."""
    answer: str = Field(min_length=1)
    """The reply to learn."""


class Episode(BaseModel):
    """One line of an episode file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    earlier: tuple[Message, ...] = Field(min_length=1)
    """Messages that are written into the memory and are not in the prompt."""
    window: tuple[Message, ...] = ()
    """Messages that stay visible before the question."""
    exchanges: tuple[Exchange, ...] = ()
    """Questions of other things that are asked and answered first, from the same memory; each answer is learnt."""
    question: str = Field(min_length=1)
    """The user's last message."""
    answer: str = Field(min_length=1)
    """The reply to learn."""
    values: tuple[str, ...] = ()
    """What any right answer contains."""
    stale: tuple[str, ...] = ()
    """What a wrong answer from the same conversation would contain: values since replaced or denied."""
    talk: tuple[int, ...] = ()
    """Positions in `earlier` that tell nothing worth keeping."""
    told: tuple[tuple[str, ...], ...] = ()
    """Values that the other messages of `earlier` tell, those of one thing together: what is worth writing most."""
    tags: tuple[str, ...] = ()
    """Free labels, for telling kinds apart."""
    shown: bool = False
    """Whether the window may show what is asked for, as recent messages do that still stand in the prompt."""

    @property
    def value(self) -> str:
        """The first of `values`, or the whole answer where none is named."""
        return self.values[0] if self.values else self.answer

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What the model sees when it answers: the window, the exchanges and the question."""
        prompt = [*self.window]
        for exchange in self.exchanges:
            prompt.append(Message(role="user", content=exchange.question))
            prompt.append(Message(role="assistant", content=exchange.answer))
        return (*prompt, Message(role="user", content=self.question))

    @property
    def learnt(self) -> tuple[int, ...]:
        """Positions in `prompt` of replies that are learnt."""
        return tuple(len(self.window) + 2 * i + 1 for i in range(len(self.exchanges)))

    def with_last_shown(self, turns: int, replies: Sequence[str]) -> Self:
        """The same with its last turns in the prompt, not in the memory, as a window of recent messages shows them.

        Args:
            turns: how many user messages, with what was replied to them, move into the window; some of `earlier` stay.
            replies: what the assistant says in them, one for each turn; "" leaves the reply that is there.
        """
        starts = [n for n, m in enumerate(self.earlier) if m.role == "user"][1:][-turns:] if turns else []
        if not starts:
            return self
        moved = list(self.earlier[starts[0] :])
        for reply, start in zip(replies, starts, strict=False):
            place = start - starts[0] + 1
            if reply and place < len(moved) and moved[place].role == "assistant":
                moved[place] = Message(role="assistant", content=reply)
        kept = {
            "earlier": self.earlier[: starts[0]],
            "window": (*self.window, *moved),
            "talk": tuple(t for t in self.talk if t < starts[0]),
            "shown": True,
        }
        return self.model_copy(update=kept)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        absent = [v for v in self.values if not contains(self.answer, v)]
        if absent:
            raise ValueError(f"answer {self.answer!r} does not contain {absent[0]!r}, which values asks of it")
        for position, message in enumerate(() if self.shown else self.window):
            shown = [v for v in self.values or (self.answer,) if contains(message.content, v)]
            if shown:
                raise ValueError(
                    f"window message {position} shows {shown[0]!r}, so the answer needs no memory: move that message "
                    "to earlier, or set shown"
                )
        for position, exchange in enumerate(self.exchanges):
            shown = [v for v in self.values or (self.answer,) if contains(exchange.answer, v)]
            if shown and UNKNOWN not in self.values:
                raise ValueError(f"exchange {position} shows {shown[0]!r}, which the question asks for: leave it out")
        said = [m.content for n, m in enumerate(self.earlier) if n not in self.talk]
        untold = [v for values in self.told for v in values if not any(contains(text, v) for text in said)]
        if untold and not self.shown:
            raise ValueError(f"told names {untold[0]!r}, which no message of earlier tells, talk aside: leave it out")
        outside = [p for p in self.talk if not 0 <= p < len(self.earlier)]
        if outside:
            raise ValueError(f"talk names message {outside[0]}, but earlier has {len(self.earlier)}")
        return self


def contains(text: str, value: str) -> bool:
    """Whether `value` stands in `text` on word boundaries, in any case."""
    return bool(places(text, value))


def places(text: str, value: str) -> list[range]:
    """The characters of `text` where `value` stands on word boundaries, in any case."""
    pattern = rf"(?<!\w){re.escape(value.strip())}(?!\w)"
    return [range(*found.span()) for found in re.finditer(pattern, text, re.IGNORECASE)]


def read_episodes(path: Path) -> list[Episode]:
    """Reads a JSONL file, an episode a line; empty lines are skipped.

    Raises:
        TrainingError: the file is missing or empty, or a line is not an episode: names file, line and fields.
    """
    episodes = [_parse(path, number, line) for number, line in numbered_lines(path)]
    if not episodes:
        raise TrainingError(f"{path} holds no episodes: expected one JSON object a line")
    return episodes


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1.

    Raises:
        TrainingError: the file is missing or not UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read ({error}): expected a UTF-8 text file; check the path") from error
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(path: Path, number: int, line: str) -> Episode:
    try:
        return Episode.model_validate_json(line)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'episode'}: {e['msg']}" for e in error.errors())
        raise TrainingError(
            f"{path}, line {number} is not an episode ({found}): expected earlier, question and answer, and perhaps "
            "window, exchanges, values, stale, talk, told and tags"
        ) from error


def write_episodes(path: Path, episodes: Iterable[Episode]) -> None:
    """Writes a JSONL file that `read_episodes` reads.

    Raises:
        TrainingError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for episode in episodes:
                file.write(episode.model_dump_json(exclude_defaults=True) + "\n")
    except OSError as error:
        raise TrainingError(f"the episodes cannot be written to {path}: {error}") from error
