"""Records as JSON, for a server and its clients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from pydantic import BaseModel, JsonValue, TypeAdapter

from deltamem_agents.backbone.tools import Tool, ToolLike
from deltamem_agents.engine.inspection import MemoryView
from deltamem_agents.engine.records import Recollection, Turn
from deltamem_agents.generation import ScoredText, TokenLogprob
from deltamem_agents.messages import MessageLike, as_messages
from deltamem_agents.store import SessionInfo, Snapshot

INFO = TypeAdapter(SessionInfo)
INFOS = TypeAdapter(list[SessionInfo])
SNAPSHOT = TypeAdapter(Snapshot)
SNAPSHOTS = TypeAdapter(list[Snapshot])
TURN = TypeAdapter(Turn)
VIEW = TypeAdapter(MemoryView)
LOGPROBS = TypeAdapter(tuple[TokenLogprob, ...])
RECOLLECTIONS = TypeAdapter(list[Recollection])

Renamed = Callable[[str], str]


def plain_info(info: SessionInfo, shown: Renamed) -> dict[str, JsonValue]:
    """A session, under the name that its holder knows it by."""
    return cast("dict[str, JsonValue]", INFO.dump_python(replace(info, name=shown(info.name)), mode="json"))


def plain_snapshot(snapshot: Snapshot, shown: Renamed) -> dict[str, JsonValue]:
    """A snapshot without its state."""
    bare = replace(snapshot, state=b"", session=shown(snapshot.session))
    return cast("dict[str, JsonValue]", SNAPSHOT.dump_python(bare, mode="json"))


def plain_turn(turn: Turn, shown: Renamed) -> dict[str, JsonValue]:
    """A turn."""
    named = replace(turn, session=None if turn.session is None else shown(turn.session))
    return cast("dict[str, JsonValue]", TURN.dump_python(named, mode="json"))


def plain_text(text: str) -> dict[str, JsonValue]:
    """A piece of a reply, with the log-probabilities of its tokens where it carries them."""
    if not isinstance(text, ScoredText):
        return {"text": text}
    return {"text": str(text), "logprobs": LOGPROBS.dump_python(text.logprobs, mode="json")}


def text_of(plain: Mapping[str, JsonValue]) -> str:
    """What `plain_text` made plain."""
    text = str(plain["text"])
    return ScoredText(text, LOGPROBS.validate_python(plain["logprobs"])) if "logprobs" in plain else text


def plain_view(view: MemoryView, shown: Renamed) -> dict[str, JsonValue]:
    """A memory as numbers."""
    return cast("dict[str, JsonValue]", VIEW.dump_python(replace(view, session=shown(view.session)), mode="json"))


def plain_messages(messages: Sequence[MessageLike]) -> list[dict[str, JsonValue]]:
    """Messages, checked.

    Raises:
        MessageError: they are empty or malformed.
    """
    return [message.model_dump(mode="json", exclude_defaults=True) for message in as_messages(messages)]


def plain_options(options: Mapping[str, object]) -> dict[str, object]:
    """The keywords of a call; those that were not given are left out."""
    given = {name: value for name, value in options.items() if value is not None}
    if "tools" in given:
        given["tools"] = [plain_tool(tool) for tool in cast("Sequence[ToolLike]", given["tools"])]
    format = given.get("response_format")
    return given if not isinstance(format, BaseModel) else {**given, "response_format": format.model_dump(mode="json")}


def plain_tool(tool: ToolLike) -> Mapping[str, object]:
    """A tool in the style of OpenAI's API."""
    return tool.plain if isinstance(tool, Tool) else tool
