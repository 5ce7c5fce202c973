"""Templates, and the headers under which browsers show them. Jinja escapes whatever users have said."""

from datetime import datetime
from functools import cache

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from deltamem_agents.report.words import templates

SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer of the page: nothing from elsewhere, no scripts or styles in the text, no copies kept."""


def page(request: Request, template: str, *, status: int = 200, **values: object) -> Response:
    """A template as an answer."""
    return HTMLResponse(render(template, request=request, **values), status_code=status)


def render(template: str, **values: object) -> str:
    """A template as text."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = templates("deltamem_agents.serve.page")
    environment.filters |= {"moment": _moment, "tenths": _tenths}
    return environment


def _moment(time: datetime) -> str:
    """In the server's time zone."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M")


def _tenths(share: float) -> int:
    """0 to 10, for classes of shades: the policy above allows no styles in the text."""
    return min(10, max(0, round(10 * share)))
