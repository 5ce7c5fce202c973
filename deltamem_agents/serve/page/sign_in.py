"""Signing in with an API key: a cookie stands for it, and opens what it opens."""

import secrets
import time
from collections import OrderedDict
from typing import Annotated, cast

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
MOST = 10_000

router = APIRouter(route_class=PageRoute, include_in_schema=False)


class SignIns:
    """Who is signed in: tokens that browsers hold, and the digests of the keys that they stand for.

    A key that is taken out of the file of keys opens nothing any more. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    def begin(self, digest: bytes) -> str:
        """A new token for a key; beyond `MOST` of them the oldest ends."""
        token = secrets.token_urlsafe(32)
        self._open[token] = (digest, time.monotonic() + SECONDS)
        if len(self._open) > MOST:
            self._open.popitem(last=False)
        return token

    def end(self, token: str) -> None:
        """Signs out."""
        self._open.pop(token, None)

    def namespace(self, token: str, keys: Keys) -> Namespace | None:
        """What a token opens; None for one that is not known, has run out, or whose key is not valid any more."""
        digest, until = self._open.get(token, (b"", 0.0))
        if time.monotonic() >= until:
            self.end(token)
            return None
        return keys.opened(digest)


class SignInForm(BaseModel):
    """What the form sends."""

    key: str = ""


def the_sign_ins(request: Request) -> SignIns:
    """Those of the app that a request is for."""
    return cast("SignIns", request.app.state.sign_ins)


def the_page_namespace(request: Request) -> Namespace:
    """What the browser's sign-in opens; everything, where no keys are asked for.

    Raises:
        ApiError: 401, which the page answers with the form to sign in.
    """
    keys = the_service(request).keys
    found = Namespace() if keys is None else the_sign_ins(request).namespace(request.cookies.get(COOKIE, ""), keys)
    if found is None:
        raise ApiError(401, "you are not signed in, or not any more: sign in with a key", code="signed_out")
    if found.name:
        request.state.log["namespace"] = found.name
    request.state.prefix = found.prefix
    return found


ThePageNamespace = Annotated[Namespace, Depends(the_page_namespace)]


def the_page_session(session: str, namespace: ThePageNamespace) -> str:
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
    sign_ins: Annotated[SignIns, Depends(the_sign_ins)],
) -> Response:
    """Takes a key for a cookie that scripts don't see and other sites don't send."""
    key = form.key.strip()
    if service.keys is not None and service.keys.namespace(key) is None:
        return page(request, "sign_in.html", status=401, wrong=True)
    response = RedirectResponse("/", status_code=303)
    if service.keys is not None:
        response.set_cookie(
            COOKIE,
            sign_ins.begin(Keys.digest(key)),
            max_age=SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return response


@router.post("/sign-out")
async def sign_out(request: Request, sign_ins: Annotated[SignIns, Depends(the_sign_ins)]) -> Response:
    """Forgets the cookie, here and in the browser."""
    sign_ins.end(request.cookies.get(COOKIE, ""))
    response = RedirectResponse(SIGN_IN, status_code=303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response
