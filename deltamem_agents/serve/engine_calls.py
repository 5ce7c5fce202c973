"""`/v1/turns` and `/v1/tokens`: an engine's own calls, for clients that have its API (`DeltaMemEngine.connect`)."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

from fastapi import APIRouter, Request
from pydantic import Field, JsonValue
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from deltamem_agents.engine import Turn
from deltamem_agents.engine.options import TurnOptions
from deltamem_agents.engine.wire import plain_text, plain_turn
from deltamem_agents.errors import ConfigError
from deltamem_agents.messages import MessageLike
from deltamem_agents.serve.chat import check_messages, event, stream_error, usage_fields
from deltamem_agents.serve.chat_schema import Strict
from deltamem_agents.serve.errors import ApiError
from deltamem_agents.serve.keys import Namespace
from deltamem_agents.serve.service import TheNamespace, TheService
from deltamem_agents.serve.turns import EventStream, begun, turn_items, whole_turn

router = APIRouter(tags=["engine"])
_ARGUMENTS = {"self", "messages", "snapshot"}
"""What `astream` takes beside options."""


class TurnRequest(Strict):
    """A call of `generate`: the engine checks messages and options."""

    messages: list[dict[str, JsonValue]]
    options: dict[str, JsonValue] = Field(default_factory=dict)
    stream: bool = False


class TokensRequest(Strict):
    """What to count: a prompt's tokens, or a text's."""

    messages: list[dict[str, JsonValue]] | None = None
    tools: list[dict[str, JsonValue]] | None = None
    text: str | None = None


@router.post("/v1/turns", response_model=None)
async def turns(body: TurnRequest, request: Request, service: TheService, namespace: TheNamespace) -> Response:
    """A turn, by the keywords of the engine. A stream is events of `{"text": …}`, then `{"turn": …}` or an error."""
    check_messages(service, len(body.messages))
    options = dict(body.options)
    if given := sorted(options.keys() & _ARGUMENTS):
        raise ApiError(400, f"{given[0]!r} is no option of a turn: leave it out", code="invalid_value", param=given[0])
    session = options.get("session")
    if session is not None:
        options["session"] = namespace.stored(cast("str", session))
    messages = cast("list[MessageLike]", body.messages)
    items = turn_items(service, messages, cast("TurnOptions", options))
    if not body.stream:
        turn = await whole_turn(request, items)
        request.state.log |= usage_fields(turn)
        return JSONResponse(plain_turn(turn, namespace.shown))
    return EventStream(_events(await begun(request, items), request, namespace), {})


@router.post("/v1/tokens")
async def tokens(body: TokensRequest, service: TheService, namespace: TheNamespace) -> dict[str, object]:
    """How many tokens a prompt takes, or which a text is."""
    engine = service.engine
    if (body.messages is None) == (body.text is None):
        raise ConfigError("give either messages or a text")
    if body.text is not None:
        return {"ids": await run_in_threadpool(engine.token_ids, body.text)}
    messages = cast("list[MessageLike]", body.messages)
    return {"tokens": await run_in_threadpool(engine.count_tokens, messages, tools=body.tools)}


async def _events(
    items: AsyncIterator[str | Turn], request: Request, namespace: Namespace
) -> AsyncGenerator[str, None]:
    try:
        async for item in items:
            if isinstance(item, str):
                yield event(plain_text(item))
            else:
                request.state.log |= usage_fields(item)
                yield event({"turn": plain_turn(item, namespace.shown)})
    except Exception as error:
        yield event(stream_error(error, request, namespace))
