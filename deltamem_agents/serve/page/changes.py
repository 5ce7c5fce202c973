"""What the page changes: sessions forked, rolled back, moved and forgotten, and messages forgotten."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response

from deltamem_agents.serve import sessions
from deltamem_agents.serve.chat_schema import Strict
from deltamem_agents.serve.page.routing import PageRoute, form_of
from deltamem_agents.serve.page.sign_in import ThePageNamespace, ThePageSession
from deltamem_agents.serve.service import TheService

router = APIRouter(route_class=PageRoute, include_in_schema=False)
CHANGED = "memory-changed"
"""What parts of the page listen for, to show the session as it is now."""


class ForkForm(Strict):
    """Another session."""

    name: str
    at: str
    """A snapshot."""


class RollbackForm(Strict):
    """A snapshot to go to; empty: the beginning."""

    to: str = ""


class ForgetForm(Strict):
    """A message to forget."""

    message: str
    """SNAPSHOT/PLACE."""
    purge: bool = False


@router.post("/page/fork")
def fork(
    form: Annotated[ForkForm, Depends(form_of(ForkForm))],
    session: ThePageSession,
    service: TheService,
    namespace: ThePageNamespace,
) -> Response:
    """Begins another session at a commit, and goes there."""
    new = namespace.stored(form.name.strip())
    service.engine.fork(session, new, at=form.at)
    return Response(status_code=204, headers={"HX-Redirect": address(namespace.shown(new))})


@router.post("/page/rollback")
def rollback(
    form: Annotated[RollbackForm, Depends(form_of(RollbackForm))], session: ThePageSession, service: TheService
) -> Response:
    """Goes to a commit, back or forward again."""
    if form.to:
        service.engine.rollback(session, form.to)
    else:
        service.engine.rollback(session, turns=service.engine.info(session).turns)
    return _changed()


@router.post("/page/forget-message")
async def forget_message(
    form: Annotated[ForgetForm, Depends(form_of(ForgetForm))], session: ThePageSession, service: TheService
) -> Response:
    """Rebuilds the memory without a message."""
    with service.gate.call():
        await run_in_threadpool(service.engine.forget_message, session, form.message, purge=form.purge)
    return _changed()


@router.post("/page/forget")
def forget(session: ThePageSession, service: TheService) -> Response:
    """Deletes the session for good."""
    service.engine.forget(session)
    return Response(status_code=204, headers={"HX-Redirect": "/"})


@router.get("/page/export", response_class=FileResponse)
def export(session: ThePageSession, service: TheService, namespace: ThePageNamespace) -> FileResponse:
    """The session's line as a file."""
    return sessions.export(session, service, namespace)


@router.post("/page/import")
async def import_(
    request: Request, session: ThePageSession, service: TheService, namespace: ThePageNamespace
) -> Response:
    """Takes in what an export gave, under a name; the body is the file."""
    await sessions.import_(session, request, service, namespace)
    return JSONResponse({"address": address(namespace.shown(session))}, status_code=201)


def address(name: str) -> str:
    """Where the page of a session is. Names are no parts of paths here: browsers make something else of ".."."""
    return f"/?{urlencode({'session': name})}"


def _changed() -> Response:
    return Response(status_code=204, headers={"HX-Trigger": CHANGED})
