"""Saying something on the page: replies as they come, with the session's memory and without."""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from deltamem_agents.engine import Turn
from deltamem_agents.engine.options import TurnOptions
from deltamem_agents.messages import Message
from deltamem_agents.serve.chat import event, stream_error, usage_fields
from deltamem_agents.serve.chat_schema import Strict
from deltamem_agents.serve.keys import Namespace
from deltamem_agents.serve.page.conversation import said_again
from deltamem_agents.serve.page.routing import PageRoute, form_of
from deltamem_agents.serve.page.sign_in import ThePageNamespace, ThePageSession
from deltamem_agents.serve.service import Service, TheService
from deltamem_agents.serve.turns import EventStream, begun, turn_items

router = APIRouter(route_class=PageRoute, include_in_schema=False)
LIVELY = 0.8
"""The temperature of a reply that is made again: at 0 it would be the same."""


class Say(Strict):
    """A message of the user."""

    text: str = Field(min_length=1)
    recent: int | None = Field(default=None, ge=0, le=1000)
    """How many recent messages are also in the prompt; None: as the engine has it."""


class SayAgain(Strict):
    """A message in the place of one that was said."""

    message: str
    """SNAPSHOT/PLACE of the one that was said."""
    text: str | None = Field(default=None, min_length=1)
    """None: the same again, for another reply."""


@router.post("/page/say", response_model=None)
async def say(
    form: Annotated[Say, Depends(form_of(Say))],
    session: ThePageSession,
    request: Request,
    service: TheService,
    namespace: ThePageNamespace,
) -> Response:
    """The reply, with memory; both are kept when it is complete, and nothing if the page leaves before."""
    options = TurnOptions(session=session, recent_messages=form.recent)
    return await _reply(request, service, namespace, [_new(form.text)], options)


@router.post("/page/without", response_model=None)
async def without(
    form: Annotated[Say, Depends(form_of(Say))], request: Request, service: TheService, namespace: ThePageNamespace
) -> Response:
    """What the frozen model says to the same message alone. Nothing is kept."""
    return await _reply(request, service, namespace, [_new(form.text)], TurnOptions(memory="off"))


@router.post("/page/again", response_model=None)
async def again(
    form: Annotated[SayAgain, Depends(form_of(SayAgain))],
    session: ThePageSession,
    request: Request,
    service: TheService,
    namespace: ThePageNamespace,
) -> Response:
    """Another way to go from where a message was said: with another text, or for another reply."""
    store = service.engine.store
    messages, thread = await run_in_threadpool(said_again, store, session, form.message, text=form.text)
    options = TurnOptions(session=session, thread=thread)
    if form.text is None:
        options |= TurnOptions(temperature=LIVELY, seed=uuid.uuid4().int % 2**31)
    return await _reply(request, service, namespace, messages, options)


async def _reply(
    request: Request, service: Service, namespace: Namespace, messages: list[Message], options: TurnOptions
) -> Response:
    options = TurnOptions(max_new_tokens=service.config.max_new_tokens) | options
    first = await begun(request, turn_items(service, messages, options))
    return EventStream(_events(first, request, namespace), {})


async def _events(
    items: AsyncIterator[str | Turn], request: Request, namespace: Namespace
) -> AsyncGenerator[str, None]:
    """`{"text": …}` as it comes, then `{"done": …}` or `{"error": …}`."""
    try:
        async for item in items:
            if isinstance(item, str):
                yield event({"text": item})
            else:
                request.state.log |= usage_fields(item)
                yield event({"done": item.finish_reason})
    except Exception as error:
        yield event(stream_error(error, request, namespace))


def _new(text: str) -> Message:
    return Message(role="user", content=text, id=f"page-{uuid.uuid4().hex}")
