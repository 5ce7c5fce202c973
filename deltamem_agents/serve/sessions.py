"""`/v1/sessions`: memories as branches of commits, listed, read, forked, rolled back, moved and forgotten."""

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Annotated, cast

from fastapi import APIRouter, Query, Request
from pydantic import Field, JsonValue
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response

from deltamem_agents.engine.interface import QUESTIONS
from deltamem_agents.engine.wire import RECOLLECTIONS, plain_info, plain_snapshot, plain_view
from deltamem_agents.errors import SessionNotFoundError, StateError, StoreError
from deltamem_agents.messages import MessageLike
from deltamem_agents.serve.chat import check_messages
from deltamem_agents.serve.chat_schema import Strict
from deltamem_agents.serve.edge import too_large
from deltamem_agents.serve.errors import ApiError, of_engine
from deltamem_agents.serve.keys import Namespace
from deltamem_agents.serve.service import Service, TheNamespace, TheService, TheSession, decoded
from deltamem_agents.serve.turns import while_there

router = APIRouter(prefix="/v1/sessions", tags=["memory"])
MOST = 1000
"""Sessions of one page."""


class Absorption(Strict):
    """Messages that go into a memory without a reply."""

    messages: list[dict[str, JsonValue]]
    thread: str | None = None
    key: str | None = None
    """Makes a retry harmless."""


class Fork(Strict):
    """Another session that begins here."""

    name: str
    at: str | None = None
    """A snapshot of the line; by default its head."""


class Rollback(Strict):
    """Where to go: one of the two."""

    to: str | None = None
    turns: int | None = None


class Probe(Strict):
    """What to ask a memory."""

    questions: list[str] = Field(default=list(QUESTIONS), min_length=1, max_length=64)


class Found(Strict):
    """Ids of messages."""

    ids: list[str]


@router.get("")
def list_sessions(
    service: TheService,
    namespace: TheNamespace,
    prefix: str = "",
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=MOST)] = 100,
) -> dict[str, object]:
    """Sessions by name, those that begin with `prefix`; of pages, `after` is the last name of the one before."""
    start = namespace.prefix + after if after else None
    found = service.engine.store.sessions(prefix=namespace.prefix + prefix, after=start, limit=limit + 1)
    page = found[:limit]
    last = namespace.shown(page[-1].name) if page else None
    return {
        "object": "list",
        "data": [plain_info(info, namespace.shown) for info in page],
        "has_more": len(found) > limit,
        "last": last,
    }


@router.get("/{name}")
def session(session: TheSession, service: TheService, namespace: TheNamespace) -> dict[str, JsonValue]:
    """A session's head, times and sizes."""
    return plain_info(service.engine.info(session), namespace.shown)


@router.delete("/{name}")
def forget(session: TheSession, service: TheService, namespace: TheNamespace) -> dict[str, object]:
    """Deletes a session for good: its memory, its log and its texts."""
    service.engine.forget(session)
    return {"name": namespace.shown(session), "deleted": True}


@router.delete("/{name}/messages/{message}")
async def forget_message(
    message: str,
    session: TheSession,
    request: Request,
    service: TheService,
    namespace: TheNamespace,
    purge: bool = False,
) -> dict[str, object]:
    """Rebuilds a session without one message, named by its id or as SNAPSHOT/PLACE, percent-encoded."""
    with service.gate.call():
        head = await run_in_threadpool(service.engine.forget_message, session, decoded(message), purge=purge)
    return {"name": namespace.shown(session), "head": head}


@router.get("/{name}/log")
def log(session: TheSession, service: TheService, namespace: TheNamespace) -> dict[str, object]:
    """All commits of a session, oldest first, with what was said as far as it is kept."""
    commits = service.engine.log(session)
    return {"object": "list", "data": [plain_snapshot(snapshot, namespace.shown) for snapshot in commits]}


@router.post("/{name}/absorb")
async def absorb(
    body: Absorption, session: TheSession, request: Request, service: TheService, namespace: TheNamespace
) -> dict[str, str]:
    """Writes messages into a memory without a reply."""
    check_messages(service, len(body.messages))
    said = cast("list[MessageLike]", body.messages)
    with service.gate.call():
        absorbing = service.engine.aabsorb(said, session=session, thread=body.thread, key=body.key)
        return {"snapshot": await while_there(request, absorbing)}


@router.post("/{name}/fork")
def fork(body: Fork, session: TheSession, service: TheService, namespace: TheNamespace) -> dict[str, JsonValue]:
    """Begins another session with this one's memory."""
    new = namespace.stored(body.name)
    service.engine.fork(session, new, at=body.at)
    return plain_info(service.engine.info(new), namespace.shown)


@router.post("/{name}/rollback")
def rollback(body: Rollback, session: TheSession, service: TheService, namespace: TheNamespace) -> dict[str, object]:
    """Goes back, or forward again, to one of a session's commits."""
    return {"head": service.engine.rollback(session, body.to, turns=body.turns)}


@router.post("/{name}/rebuild")
async def rebuild(session: TheSession, service: TheService, namespace: TheNamespace) -> dict[str, int]:
    """Makes a memory anew from its texts."""
    with service.gate.call():
        return {"turns": await run_in_threadpool(service.engine.rebuild, session)}


@router.get("/{name}/state", response_class=Response)
def state(session: TheSession, service: TheService, namespace: TheNamespace) -> Response:
    """The memory itself, as safetensors."""
    head = service.engine.info(session).head
    if head is None:
        raise SessionNotFoundError(f"session {namespace.shown(session)!r} is empty: it has no memory yet")
    return Response(service.engine.store.snapshot(head).state, media_type="application/octet-stream")


@router.get("/{name}/inspect")
async def inspect(
    session: TheSession, service: TheService, namespace: TheNamespace, writes: bool = False
) -> dict[str, JsonValue]:
    """How strong a memory is and where, how much of it is new, and with `writes` what the last turn wrote."""
    with service.gate.call():
        view = await run_in_threadpool(service.engine.inspect, session, writes=writes)
    return plain_view(view, namespace.shown)


@router.post("/{name}/probe")
async def probe(
    body: Probe, session: TheSession, request: Request, service: TheService, namespace: TheNamespace
) -> dict[str, object]:
    """Asks a memory, each question by itself and with nothing else in the prompt. Nothing is kept."""
    with service.gate.call():
        answers = await run_in_threadpool(service.engine.remembered, session, body.questions)
    return {"session": namespace.shown(session), "data": RECOLLECTIONS.dump_python(answers, mode="json")}


@router.post("/{name}/find")
def find(body: Found, session: TheSession, service: TheService, namespace: TheNamespace) -> dict[str, object]:
    """The snapshots that hold messages with these ids."""
    found = service.engine.store.find(session, body.ids)
    return {"data": {id: plain_snapshot(snapshot, namespace.shown) for id, snapshot in found.items()}}


@router.get("/{name}/export", response_class=FileResponse)
def export(session: TheSession, service: TheService, namespace: TheNamespace) -> FileResponse:
    """A session's line as a file, with all that an import needs to go on."""
    path = _temporary()
    try:
        commits = service.engine.export_session(session, path, named=namespace.shown(session))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return FileResponse(
        path,
        media_type="application/zip",
        filename="session.zip",
        headers={"x-commits": str(commits)},
        background=BackgroundTask(path.unlink, missing_ok=True),
    )


@router.post("/{name}/import", status_code=201)
async def import_(session: TheSession, request: Request, service: TheService, namespace: TheNamespace) -> Response:
    """Takes in what `export` gave, under this name; the body is the file."""
    path = _temporary()
    try:
        await _receive(request, service, path)
        try:
            await run_in_threadpool(service.engine.take_in, path, name=session)
        except (StateError, StoreError) as error:
            raise _bad_file(error, namespace) from error
        info = await run_in_threadpool(service.engine.info, session)
        return JSONResponse(plain_info(info, namespace.shown), status_code=201)
    finally:
        path.unlink(missing_ok=True)


async def _receive(request: Request, service: Service, path: Path) -> None:
    """Writes a body to a file, within its limits."""
    most, size = service.config.max_import_bytes, 0
    try:
        async with asyncio.timeout(10 * service.config.body_timeout):
            with path.open("wb") as file:
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > most:
                        raise too_large(most)
                    await run_in_threadpool(file.write, chunk)
    except TimeoutError as error:
        raise ApiError(408, "the file did not come in time: send it faster", code="timeout") from error


def _bad_file(error: StateError | StoreError, namespace: Namespace) -> ApiError:
    """A file that is no sound export is the client's mistake; a store that can't be written is not."""
    made = of_engine(error, hide=namespace.prefix)
    if isinstance(error, StateError) or "is no sound export" in str(error) or "has format" in str(error):
        made.status, made.code, made.headers = 400, "bad_file", {}
        made.message = made.message.replace(tempfile.gettempdir() + os.sep, "")
    return made


def _temporary() -> Path:
    handle, name = tempfile.mkstemp(prefix="deltamem-", suffix=".zip")
    os.close(handle)
    return Path(name)
