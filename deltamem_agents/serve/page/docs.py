"""`/docs`: what `/openapi.json` says, as a page that needs nothing from elsewhere."""

import json
import re

from fastapi import APIRouter, Request
from markupsafe import Markup, escape
from pydantic import JsonValue
from starlette.responses import Response

from deltamem_agents.serve.page.rendering import page
from deltamem_agents.serve.page.routing import PageRoute

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/docs")
def docs(request: Request) -> Response:
    """Every call, by the last of its tags."""
    described = request.app.openapi()
    tags: dict[str, list[dict[str, JsonValue]]] = {}
    for path, methods in described["paths"].items():
        for method, call in methods.items():
            tag = (call.get("tags") or ["other"])[-1]
            tags.setdefault(tag, []).append({"path": path, "method": method.upper(), **call})
    return page(
        request,
        "docs.html",
        info=described["info"],
        tags=tags,
        schemas=_schemas(described),
        plain=_plain,
        ref=_ref,
        coded=_coded,
    )


def _schemas(described: dict[str, dict[str, dict[str, JsonValue]]]) -> dict[str, JsonValue]:
    return described.get("components", {}).get("schemas", {})


def _ref(schema: dict[str, JsonValue]) -> str:
    """The name of the schema that a body refers to."""
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _coded(text: str) -> Markup:
    """A description, what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _plain(value: JsonValue) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
