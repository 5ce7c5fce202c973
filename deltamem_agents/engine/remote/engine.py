"""An engine behind a server."""

import os
import tempfile
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from pathlib import Path
from typing import Unpack, cast

from pydantic import JsonValue

from deltamem_agents.backbone.tools import ToolLike, ToolUse
from deltamem_agents.engine.inspection import MemoryView
from deltamem_agents.engine.interface import QUESTIONS
from deltamem_agents.engine.options import ReplyOptions, TurnOptions
from deltamem_agents.engine.records import Recollection, Turn, check_session_name
from deltamem_agents.engine.remote.connection import Connection, part
from deltamem_agents.engine.remote.store import RemoteStore
from deltamem_agents.engine.requests import check_pairs, parse_request
from deltamem_agents.engine.session import Engine
from deltamem_agents.engine.wire import (
    INFO,
    RECOLLECTIONS,
    TURN,
    VIEW,
    plain_messages,
    plain_options,
    plain_tool,
    text_of,
)
from deltamem_agents.errors import SessionError, StoreError
from deltamem_agents.messages import MessageLike
from deltamem_agents.state import MemoryState
from deltamem_agents.store import SessionInfo, Snapshot
from deltamem_agents.store.transfer import exported_name

TOGETHER = 16
"""Turns of a batch that are asked for at once."""
Json = dict[str, JsonValue]


class RemoteEngine(Engine):
    """The API of `DeltaMemEngine`, and its errors, on a server that `deltamem serve` runs.

    Sessions are those that the key opens. A stream is committed by the server when its reply is complete, unless the
    reader has left by then. A server that is busy is asked again for a minute.

    Args:
        url: where the server is, such as "http://127.0.0.1:8080".
        api_key: what it asks for, if it does.
        timeout: how many seconds an answer may take.

    Raises:
        StoreError: it cannot be reached.
        ConfigError: no URL, or a key that it doesn't know.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 600.0) -> None:
        self._connection = Connection(url, api_key=api_key, timeout=timeout)
        models = cast("dict[str, list[Json]]", self._connection.data("GET", "/v1/models"))
        (model,) = models["data"]
        self.url = self._connection.url
        self.model_name = str(model["name"])
        self.context = cast("int", model["max_model_len"])
        self.recent_messages = cast("int", model["recent_messages"])
        self.fingerprint = str(model["fingerprint"])
        self.store = RemoteStore(self._connection)

    def __repr__(self) -> str:
        """Says where it is."""
        return f"RemoteEngine({self.url!r})"

    # --- turns

    def generate(self, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> Turn:
        """Replies to messages; see `EngineCalls.generate`."""
        return TURN.validate_python(self._connection.data("POST", "/v1/turns", self._body(messages, options)))

    async def agenerate(self, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> Turn:
        """`generate` for an event loop. Cancelling the task leaves the session as it was."""
        return TURN.validate_python(await self._connection.adata("POST", "/v1/turns", self._body(messages, options)))

    def stream(self, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> Iterator[str | Turn]:
        """Yields the reply's text as it comes, then the `Turn`; see `EngineCalls.stream`."""
        return self._stream({**self._body(messages, options), "stream": True})

    def astream(self, messages: Sequence[MessageLike], **options: Unpack[TurnOptions]) -> AsyncIterator[str | Turn]:
        """`stream` for an event loop; see `EngineCalls.astream`."""
        return self._astream({**self._body(messages, options), "stream": True})

    def batch(
        self,
        conversations: Sequence[Sequence[MessageLike]],
        *,
        sessions: Sequence[str | None],
        thread: str | None = None,
        **options: Unpack[ReplyOptions],
    ) -> list[Turn]:
        """Replies to many sessions at once; see `EngineCalls.batch`."""
        check_pairs(conversations, sessions)
        pairs = enumerate(zip(conversations, sessions, strict=True))
        queues: dict[object, list[tuple[int, Json]]] = defaultdict(list)
        for place, (messages, session) in pairs:
            body = self._body(messages, {**options, "session": session, "thread": thread})
            queues[place if session is None else session].append((place, cast("Json", body)))

        def one_after_the_other(queue: list[tuple[int, Json]]) -> list[tuple[int, Turn]]:
            return [
                (place, TURN.validate_python(self._connection.data("POST", "/v1/turns", body))) for place, body in queue
            ]

        with ThreadPoolExecutor(TOGETHER) as threads:
            turns = dict(pair for done in threads.map(one_after_the_other, queues.values()) for pair in done)
        return [turns[place] for place in range(len(conversations))]

    def absorb(
        self, messages: Sequence[MessageLike], *, session: str, thread: str | None = None, key: str | None = None
    ) -> str:
        """Writes messages without a reply; see `EngineCalls.absorb`."""
        path, body = _absorption(messages, session, thread, key)
        return str(cast("Json", self._connection.data("POST", path, body))["snapshot"])

    async def aabsorb(
        self, messages: Sequence[MessageLike], *, session: str, thread: str | None = None, key: str | None = None
    ) -> str:
        """`absorb` for an event loop."""
        path, body = _absorption(messages, session, thread, key)
        return str(cast("Json", await self._connection.adata("POST", path, body))["snapshot"])

    def count_tokens(self, messages: Sequence[MessageLike], *, tools: Sequence[ToolLike] | None = None) -> int:
        """The tokens of a prompt; see `EngineCalls.count_tokens`."""
        ToolUse.parse(tools)
        body = {"messages": plain_messages(messages), "tools": [plain_tool(tool) for tool in tools] if tools else None}
        return cast("int", cast("Json", self._connection.data("POST", "/v1/tokens", body))["tokens"])

    def token_ids(self, text: str) -> list[int]:
        """A text's tokens, without markers around it."""
        return cast("list[int]", cast("Json", self._connection.data("POST", "/v1/tokens", {"text": text}))["ids"])

    # --- sessions

    def sessions(self, *, prefix: str = "") -> list[SessionInfo]:
        """The sessions whose names start with `prefix`."""
        return self.store.sessions(prefix=prefix)

    def info(self, session: str) -> SessionInfo:
        """Head, times and sizes; see `EngineCalls.info`."""
        return INFO.validate_python(self._connection.data("GET", _path(session)))

    def log(self, session: str) -> list[Snapshot]:
        """All commits of a session; see `EngineCalls.log`."""
        return self.store.log(session)

    def state(self, session: str) -> MemoryState:
        """A session's memory as it is now; see `EngineCalls.state`."""
        found = self._connection.request("GET", _path(session, "state")).content
        return MemoryState.from_bytes(found, fingerprint=self.fingerprint)

    def fork(self, session: str, new_name: str, *, at: str | None = None) -> None:
        """Begins another session at a commit of this one's line; see `EngineCalls.fork`."""
        check_session_name(new_name)
        self.store.fork(check_session_name(session), new_name, at=at)

    def rollback(self, session: str, to: str | None = None, *, turns: int | None = None) -> str | None:
        """Goes to one of a session's commits; see `EngineCalls.rollback`."""
        found = self._connection.data("POST", _path(session, "rollback"), {"to": to, "turns": turns})
        return cast("str | None", cast("Json", found)["head"])

    def forget(self, session: str) -> None:
        """Deletes a session for good; see `EngineCalls.forget`."""
        self.store.forget(check_session_name(session))

    def forget_message(self, session: str, message: str, *, purge: bool = False) -> str | None:
        """Rebuilds a session without one message; see `EngineCalls.forget_message`."""
        found = self._connection.data("DELETE", _path(session, "messages", message), purge=purge)
        return cast("str | None", cast("Json", found)["head"])

    def remembered(self, session: str, questions: Sequence[str] = QUESTIONS) -> list[Recollection]:
        """What a session answers out of its memory alone; see `EngineCalls.remembered`."""
        found = self._connection.data("POST", _path(session, "probe"), {"questions": list(questions)})
        return RECOLLECTIONS.validate_python(cast("Json", found)["data"])

    def export_session(self, session: str, path: str | Path) -> int:
        """Writes a session's line to one file; see `EngineCalls.export_session`."""
        answer = self._connection.request("GET", _path(session, "export"))
        _write(Path(path), answer.content)
        return int(answer.headers["x-commits"])

    def take_in(self, path: str | Path, *, name: str | None = None) -> str:
        """Takes in what `export_session` wrote; see `EngineCalls.take_in`."""
        own_name = exported_name(path)  # also refuses here what the server would
        name = check_session_name(own_name if name is None else name)
        with Path(path).open("rb") as file:
            self._connection.request("POST", _path(name, "import"), content=file)
        return name

    def rebuild(self, session: str) -> int:
        """Makes a session's memory anew from its texts; see `EngineCalls.rebuild`."""
        return cast("int", cast("Json", self._connection.data("POST", _path(session, "rebuild")))["turns"])

    def inspect(self, session: str, *, writes: bool = True) -> MemoryView:
        """Makes a memory readable; see `EngineCalls.inspect`."""
        return VIEW.validate_python(self._connection.data("GET", _path(session, "inspect"), writes=writes))

    def close(self) -> None:
        """Lets go of the server, which goes on."""
        self._connection.close()

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._connection.closed

    # --- inside

    def _body(self, messages: Sequence[MessageLike], options: TurnOptions) -> dict[str, object]:
        """A turn's request, checked here as an engine would."""
        parse_request(messages, options, recent_messages=self.recent_messages)
        return {"messages": plain_messages(messages), "options": plain_options(options)}

    def _stream(self, body: dict[str, object]) -> Generator[str | Turn, None, None]:
        with closing(self._connection.events("/v1/turns", body)) as events:
            for event in events:
                yield _item(event)

    async def _astream(self, body: dict[str, object]) -> AsyncGenerator[str | Turn, None]:
        async with aclosing(self._connection.aevents("/v1/turns", body)) as events:
            async for event in events:
                yield _item(event)


def _item(event: Json) -> str | Turn:
    return TURN.validate_python(event["turn"]) if "turn" in event else text_of(event)


def _path(session: str, *rest: str) -> str:
    return "/".join(["/v1/sessions", part(check_session_name(session)), *map(part, rest)])


def _absorption(
    messages: Sequence[MessageLike], session: str, thread: str | None, key: str | None
) -> tuple[str, dict[str, object]]:
    if thread is not None:
        check_session_name(thread, kind="thread")
    if key is not None and not key:
        raise SessionError("the key of an absorption is empty: give a text that names it, or None")
    return _path(session, "absorb"), {"messages": plain_messages(messages), "thread": thread, "key": key}


def _write(path: Path, data: bytes) -> None:
    """Writes a file as a whole or not at all."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error}): check its folder, permissions and disk") from error
