"""Signing in with an API key: a cookie stands for it, and opens what it opens, at every replica of a server."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import RedirectResponse, Response

from deltamem_agents.serve.errors import ApiError
from deltamem_agents.serve.keys import Keys, Namespace
from deltamem_agents.serve.page.rendering import page
from deltamem_agents.serve.page.routing import SIGN_IN, PageRoute, form_of
from deltamem_agents.serve.service import TheService, the_service

COOKIE = "deltamem-sign-in"
SECONDS = 12 * 3600
"""How long a sign-in lasts."""

router = APIRouter(route_class=PageRoute, include_in_schema=False)


class SignInForm(BaseModel):
    """What the form sends."""

    key: str = ""


async def the_page_namespace(request: Request) -> Namespace:
    """What the browser's sign-in opens; everything, where no keys are asked for.

    Raises:
        ApiError: 401, which the page answers with the form to sign in.
    """
    keys = the_service(request).keys
    found = Namespace() if keys is None else keys.admitted(request.cookies.get(COOKIE, ""), now=time.time())
    if found is None:
        raise ApiError(401, "you are not signed in, or not any more: sign in with a key", code="signed_out")
    if found.name:
        request.state.log["namespace"] = found.name
    request.state.prefix = found.prefix
    return found


ThePageNamespace = Annotated[Namespace, Depends(the_page_namespace)]


async def the_page_session(session: str, namespace: ThePageNamespace) -> str:
    """The name in the store of the session that the page is about."""
    return namespace.stored(session)


ThePageSession = Annotated[str, Depends(the_page_session)]


@router.get(SIGN_IN)
async def sign_in_form(request: Request, service: TheService) -> Response:
    """The form; where no keys are asked for there is nothing to sign in to."""
    if service.keys is None:
        return RedirectResponse("/", status_code=303)
    return page(request, "sign_in.html", wrong=False)


@router.post(SIGN_IN)
async def sign_in(
    form: Annotated[SignInForm, Depends(form_of(SignInForm))],
    request: Request,
    service: TheService,
) -> Response:
    """Takes a key for a cookie that scripts don't see and other sites don't send."""
    key = form.key.strip()
    if service.keys is not None and service.keys.namespace(key) is None:
        return page(request, "sign_in.html", status=401, wrong=True)
    response = RedirectResponse("/", status_code=303)
    if service.keys is not None:
        response.set_cookie(
            COOKIE,
            Keys.ticket(key, until=int(time.time()) + SECONDS),
            max_age=SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return response


@router.post("/sign-out")
async def sign_out() -> Response:
    """Takes the cookie away from the browser."""
    response = RedirectResponse(SIGN_IN, status_code=303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response
