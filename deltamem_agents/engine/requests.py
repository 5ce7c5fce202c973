"""A call's keywords, checked."""

from collections.abc import Sequence
from typing import cast

from deltamem_agents.backbone.tools import ToolLike, ToolUse
from deltamem_agents.engine.options import TurnOptions
from deltamem_agents.engine.records import MAIN_THREAD, MEMORY_MODES, Request, check_session_name
from deltamem_agents.errors import ConfigError, SessionError
from deltamem_agents.generation import GenerationOptions
from deltamem_agents.messages import MessageLike, as_messages


def parse_request(
    messages: Sequence[MessageLike], options: TurnOptions, *, recent_messages: int, order: int = 0
) -> Request:
    """Checks the messages and keywords of a call.

    Args:
        messages: what the caller passes.
        options: the keywords.
        recent_messages: what the engine shows where they don't say.
        order: when the call was made, as its engine counts.

    Raises:
        MessageError: messages that are empty or malformed.
        SessionError: a bad session or thread name.
        ConfigError: another option has an impossible value, or a tool is described badly.
        GenerationError: unknown or bad generation options.
    """
    rest = cast("dict[str, object]", dict(options))
    session, thread, memory = rest.pop("session", None), rest.pop("thread", None), rest.pop("memory", "read_write")
    recent = rest.pop("recent_messages", None)
    if memory not in MEMORY_MODES:
        raise ConfigError(f"memory is {memory!r}, expected one of {', '.join(MEMORY_MODES)}")
    if recent is not None:
        check_count("recent_messages", recent, at_least=0)
    use = ToolUse.parse(
        cast("Sequence[ToolLike] | None", rest.pop("tools", None)),
        rest.pop("tool_choice", None),
        parallel=rest.pop("parallel_tool_calls", None) is not False,
    )
    return Request(
        messages=tuple(as_messages(messages)),
        session=None if session is None else check_session_name(session),
        thread=MAIN_THREAD if thread is None else check_session_name(thread, kind="thread"),
        memory=memory,
        recent_messages=recent_messages if recent is None else cast("int", recent),
        options=GenerationOptions.parse(rest),
        use=use,
        order=order,
    )


def check_count(name: str, value: object, *, at_least: int) -> None:
    """Refuses what is no whole number, or too small a one.

    Raises:
        ConfigError: names it.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigError(f"{name} is {value!r}, expected a whole number, {at_least} or more")


def check_pairs(conversations: Sequence[object], sessions: Sequence[object]) -> None:
    """Refuses a batch that doesn't name a session, or None, for each conversation.

    Raises:
        SessionError: gives the numbers.
    """
    if len(conversations) != len(sessions):
        raise SessionError(f"{len(conversations)} conversations for {len(sessions)} sessions: give one session each")
