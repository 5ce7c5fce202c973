"""What a session's ledger holds of one conversation, and what of a given history it doesn't hold yet."""

from collections.abc import Sequence

from deltamem_agents import ConfigError, Message, Snapshot, StateStore

MAIN = "main"
"""The conversation of sessions that were never reset."""
BEGUN_ANEW = "main~"
"""How the labels of conversations begin that a reset began."""
LOOKBACK = 64
"""At least so many of the last messages are compared with a history, or searched for the conversation to go on with."""


def last_thread(store: StateStore, session: str) -> str:
    """The conversation to go on with: that of the session's last messages which came through a `DeltaMemory`."""
    info = store.session(session)
    if info is None or info.head is None:
        return MAIN
    line = store.line(info.head, since=max(0, info.messages - LOOKBACK))
    ours = (turn.thread for turn in reversed(line) if turn.thread == MAIN or turn.thread.startswith(BEGUN_ANEW))
    return next(ours, MAIN)


def said(store: StateStore, session: str, thread: str, *, last: int | None = None) -> list[Message]:
    """The messages of a conversation that the store has texts of, oldest first, with the ids the ledger has.

    Args:
        store: where the session is.
        session: the session.
        thread: the conversation.
        last: at least the last so many messages; None: all that are kept.

    Raises:
        ConfigError: the store keeps no texts.
    """
    info = store.session(session)
    if info is None or info.head is None:
        return []
    turns = store.thread(info.head, thread, last=info.messages if last is None else last)
    found: list[Message] = []
    for turn in turns:
        texts = [entry.text for entry in turn.entries]
        if None in texts:
            found = []  # only what lies behind the last gap is a conversation
        else:
            found += [_message(turn, place) for place in range(len(texts))]
    if turns and not found:
        raise ConfigError(
            f"session {session!r} keeps no texts (transcript 'none'), but LlamaIndex asks its memory for the last "
            "messages: open the engine with transcript='window' or 'full'"
        )
    return found


def window(store: StateStore, session: str, thread: str, *, recent: int) -> list[Message]:
    """The end of a conversation: between `recent` and twice as many messages, moving in blocks as the engine's does.

    It begins with no tool's answer, and holds what is not answered yet from its question on.
    """
    info = store.session(session)
    if info is None or info.head is None:
        return []
    last = store.thread(info.head, thread, last=1)
    count = last[-1].thread_messages if last else 0
    wanted = count - max(0, (count // recent - 1) * recent)
    reach = wanted
    while True:
        known = said(store, session, thread, last=reach)
        begin = max(0, len(known) - wanted)
        if unanswered(known) > len(known) - begin:
            begin = len(known) - unanswered(known)
        while begin > 0 and known[begin].role == "tool":
            begin -= 1
        if begin > 0 or len(known) < reach or reach >= count:
            return known[begin:]
        reach *= 2


def unanswered(messages: Sequence[Message]) -> int:
    """How many messages there are from the last question on, if nobody has replied to it; else 0."""
    if not messages or (messages[-1].role == "assistant" and not messages[-1].tool_calls):
        return 0
    asked = [n for n, message in enumerate(messages) if message.role == "user"]
    return len(messages) - asked[-1] if asked else 0


def not_yet_said(history: Sequence[Message], known: Sequence[Message]) -> list[Message]:
    """What of a history comes after all that the ledger holds already.

    Histories are passed whole, trimmed or with only their end, again and again: what equals a run at the ledger's end,
    by ids or content, and all before it, was said. Where there is none, a run anywhere in it counts if it is longer
    than one message and holds a reply: then the caller has dropped what came after, and nothing is unsaid by that.
    In doubt it is new.
    """
    marks = [_marks(message) for message in known]
    given = [_marks(message) for message in history]
    ends = [(_run(given[:stop], marks), stop) for stop in range(1, len(given) + 1)]
    length, stop = max(ends, default=(0, 0))
    if not length:
        runs = [
            (length, stop)
            for stop in range(1, len(given) + 1)
            for end in range(1, len(marks) + 1)
            if history[stop - 1].role == "assistant" and (length := _run(given[:stop], marks[:end])) > 1
        ]
        length, stop = max(runs, default=(0, 0))
    ids = {message.id for message in known}
    return [message for message in history[stop:] if message.id is None or message.id not in ids]


def _message(turn: Snapshot, place: int) -> Message:
    entry = turn.entries[place]
    assert entry.text is not None
    message = Message.model_validate_json(entry.text)
    return message.model_copy(update={"id": entry.message_id or f"{turn.id}/{place}"})


def _marks(message: Message) -> tuple[str | None, str]:
    return message.id, message.digest()


def _run(given: Sequence[tuple[str | None, str]], marks: Sequence[tuple[str | None, str]]) -> int:
    """How many messages at the two ends are the same."""
    length = 0
    while length < min(len(given), len(marks)) and _same(given[-1 - length], marks[-1 - length]):
        length += 1
    return length


def _same(given: tuple[str | None, str], mark: tuple[str | None, str]) -> bool:
    return given[0] == mark[0] if given[0] is not None else given[1] == mark[1]
