"""The app: routes put together, and every error in the same shape."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.serve import chat, engine_calls, page, responses, sessions, snapshots, status
from deltamem_agents.serve.config import PREVIOUS
from deltamem_agents.serve.edge import Edge
from deltamem_agents.serve.errors import ApiError, of_engine, of_validation
from deltamem_agents.serve.logs import log
from deltamem_agents.serve.service import Service, the_namespace, the_service

ROUTERS = (
    status.router,
    chat.router,
    responses.router,
    sessions.router,
    snapshots.router,
    engine_calls.router,
    *page.ROUTERS,
)


def create_app(
    service: Service,
    load: Callable[[], DeltaMemEngine] | None = None,
    *,
    failed: Callable[[Exception], None] | None = None,
) -> ASGIApp:
    """An ASGI app that answers for one model. It is alive at once, and ready when the engine is loaded.

    Args:
        service: names, limits and keys.
        load: gives the engine, on a thread of its own; None: the service has it. The app closes it in the end.
        failed: told why the engine couldn't be loaded.
    """

    async def open_engine() -> None:
        if load is None:
            return
        try:
            service.open(await asyncio.to_thread(load))
        except Exception as error:
            if failed is None:
                raise
            failed(error)
        else:
            log.info("ready", extra={"fields": {"model": service.config.model_id}})

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(open_engine())
        yield
        with suppress(asyncio.CancelledError):
            await opening
        with suppress(ApiError):  # it was never loaded
            await asyncio.to_thread(service.engine.close)

    app = FastAPI(
        title="deltamem",
        summary="One model, a memory for each session.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own load scripts from elsewhere
        redoc_url=None,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(ApiError, _answer)
    app.add_exception_handler(DeltaMemError, _answer)
    app.add_exception_handler(RequestValidationError, _answer)
    app.add_exception_handler(HTTPException, _answer)
    app.add_exception_handler(Exception, _broken)
    return Edge(app, config=service.config, metrics=service.metrics)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    """Any error that was foreseen, in OpenAI's shape."""
    if isinstance(error, RequestValidationError):
        error = of_validation(error.errors())
    elif isinstance(error, HTTPException):
        codes = {404: "not_found", 405: "method_not_allowed"}
        error = ApiError(error.status_code, str(error.detail), code=codes.get(error.status_code, "bad_request"))
    elif isinstance(error, DeltaMemError):
        error = of_engine(error, hide=the_namespace(request).prefix)
        previous = the_service(request).config.previous
        if previous is not None and error.code == "fingerprint_mismatch":
            error.headers[PREVIOUS] = previous
    assert isinstance(error, ApiError)
    request.state.log["error"] = error.code
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _broken(request: Request, error: Exception) -> JSONResponse:
    """An error of ours: the log has it, the client learns where to look."""
    request_id = request.state.log["request_id"]
    unforeseen = ApiError(500, f"the server failed: see its log for request {request_id}", code="internal_error")
    return JSONResponse(unforeseen.body, status_code=500)
