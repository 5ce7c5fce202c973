"""The page itself, its conversation, and its list of sessions."""

from datetime import datetime

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from deltamem_agents.serve.page.changes import address
from deltamem_agents.serve.page.conversation import conversation
from deltamem_agents.serve.page.rendering import page
from deltamem_agents.serve.page.routing import PageRoute
from deltamem_agents.serve.page.sign_in import ThePageNamespace, ThePageSession
from deltamem_agents.serve.service import TheService

router = APIRouter(route_class=PageRoute, include_in_schema=False)
PAGE = 30
"""Sessions of the list that are shown at first, and for each "more"."""


@router.get("/")
def home(request: Request, service: TheService, namespace: ThePageNamespace, session: str | None = None) -> Response:
    """The page, with a session or without."""
    engine = service.engine
    values: dict[str, object] = {"name": None}
    if session is not None:
        info = engine.store.session(namespace.stored(session))
        values = {"name": session, "info": info, "talk": conversation(engine.store, info)}
    return page(
        request,
        "home.html",
        model=service.config.model_id,
        keys=service.keys is not None,
        owner=namespace.name,
        recent=engine.recent_messages,
        **values,
    )


@router.get("/page/thread")
def thread(
    request: Request,
    session: ThePageSession,
    service: TheService,
    namespace: ThePageNamespace,
    before: int | None = None,
) -> Response:
    """The conversation as it is now, or turns before those that are shown."""
    store = service.engine.store
    talk = conversation(store, store.session(session), before=before)
    return page(request, "thread.html", name=namespace.shown(session), talk=talk)


@router.get("/page/list")
def list_sessions(
    request: Request,
    service: TheService,
    namespace: ThePageNamespace,
    prefix: str = "",
    after: str = "",
    at: str = "",
) -> Response:
    """Sessions whose names begin with `prefix`; of pages, `after` is the last name of the one before."""
    start = namespace.prefix + after if after else None
    found = service.engine.store.sessions(prefix=namespace.prefix + prefix, after=start, limit=PAGE + 1)
    return page(
        request,
        "list.html",
        sessions=[(namespace.shown(info.name), info) for info in found[:PAGE]],
        more=len(found) > PAGE,
        prefix=prefix,
        at=at,
        first=not after,
    )


@router.get("/page/new")
def new(service: TheService, namespace: ThePageNamespace, name: str = "") -> Response:
    """Goes to a session that is yet to begin: it is kept from its first turn on."""
    name = name.strip() or datetime.now().astimezone().strftime("chat %Y-%m-%d %H.%M.%S")
    namespace.stored(name)  # refuses what is no name
    return RedirectResponse(address(name), status_code=303)
