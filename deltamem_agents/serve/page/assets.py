"""The page's own files: styles, its script, and htmx."""

import hashlib
from importlib import resources

from fastapi import APIRouter, Request
from starlette.responses import Response

from deltamem_agents.serve.errors import ApiError
from deltamem_agents.serve.page.routing import PageRoute

router = APIRouter(route_class=PageRoute, include_in_schema=False)
TYPES = {
    "htmx.min.js": "text/javascript",
    "htmx.LICENSE": "text/plain",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "mark.svg": "image/svg+xml",
}
"""All there is, and what it is."""


@router.get("/page/static/{name}")
def asset(name: str, request: Request) -> Response:
    """One of the files; browsers ask each time whether it has changed."""
    if name not in TYPES:
        raise ApiError(404, "there is no such file", code="not_found")
    data = (resources.files("deltamem_agents.serve.page") / "static" / name).read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=TYPES[name], headers=headers)
