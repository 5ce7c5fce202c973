"""How the page's requests are read, and how its errors look."""

from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, RedirectResponse, Response

from deltamem_agents.errors import DeltaMemError
from deltamem_agents.serve.errors import ApiError, of_engine, of_validation
from deltamem_agents.serve.page.rendering import SECURITY, page

SIGN_IN = "/sign-in"
MOST_FIELDS = 32
FormModel = TypeVar("FormModel", bound=BaseModel)


class PageRoute(APIRoute):
    """A route of the page: asked from the page only, errors in words, strict headers."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Wraps what answers."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                if request.method not in ("GET", "HEAD"):
                    check_origin(request)
                response = await handle(request)
            except (ApiError, DeltaMemError, RequestValidationError) as error:
                response = _failure(request, error)
            for name, value in SECURITY.items():
                response.headers.setdefault(name, value)
            return response

        return answer


def check_origin(request: Request) -> None:
    """Refuses a change that another page asks for through a browser that is signed in here.

    Raises:
        ApiError: 403.
    """
    fetched, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin", "")
    same = urlsplit(origin).netloc == request.headers.get("host") if fetched is None else fetched == "same-origin"
    if not same:
        raise ApiError(
            403,
            "this did not come from the page itself, so nothing was done: open the page and do it there; programs "
            "call /v1, see /docs",
            code="foreign_origin",
        )


def form_of(model: type[FormModel]) -> Callable[[Request], Awaitable[FormModel]]:
    """A dependency that reads a form's fields into a model."""

    async def read(request: Request) -> FormModel:
        try:
            text = (await request.body()).decode()
            strict = bool(text)  # no fields at all are a form, too
            fields = parse_qsl(text, True, strict, errors="strict", max_num_fields=MOST_FIELDS)
        except ValueError as error:
            raise ApiError(400, "the body is no form: send urlencoded fields", code="bad_form") from error
        try:
            return model.model_validate(dict(fields))
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error

    return read


def _failure(request: Request, error: ApiError | DeltaMemError | RequestValidationError) -> Response:
    """An error as the asker can show it: a page, a notice within the page, or JSON for the page's own script."""
    if isinstance(error, RequestValidationError):
        error = of_validation(error.errors())
    elif isinstance(error, DeltaMemError):
        error = of_engine(error, hide=getattr(request.state, "prefix", ""))
    request.state.log["error"] = error.code
    signed_out = error.status == 401
    if "hx-request" in request.headers:
        headers = {"HX-Redirect": SIGN_IN} if signed_out else {"HX-Retarget": "#notice", "HX-Reswap": "innerHTML"}
        response = page(request, "notice.html", status=error.status, message=error.message)
        response.headers.update(error.headers | headers)
        return response
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)
    if signed_out:
        return RedirectResponse(SIGN_IN, status_code=303)
    response = page(request, "failure.html", status=error.status, error=error)
    if error.code == "loading":
        response.headers["Refresh"] = "2"
    response.headers.update(error.headers)
    return response
