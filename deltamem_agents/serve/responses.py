"""`POST /v1/responses`: a response's id is a snapshot's, so a conversation goes on from any of them."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import cast

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from deltamem_agents.engine import Engine, Turn
from deltamem_agents.engine.options import TurnOptions
from deltamem_agents.engine.records import new_id
from deltamem_agents.errors import StoreError
from deltamem_agents.generation import ScoredText
from deltamem_agents.messages import MessageLike
from deltamem_agents.serve.chat import (
    check_messages,
    event,
    plain_logprobs,
    sampling_options,
    stream_error,
    usage_fields,
)
from deltamem_agents.serve.errors import ApiError
from deltamem_agents.serve.keys import Namespace
from deltamem_agents.serve.responses_schema import ResponsesRequest
from deltamem_agents.serve.service import TheNamespace, TheService
from deltamem_agents.serve.turns import EventStream, begun, turn_items, whole_turn
from deltamem_agents.serve.whose import Whose, named_in_headers, whose

router = APIRouter(tags=["OpenAI"])
PREFIX = "resp_"


@router.post("/v1/responses", response_model=None)
async def responses(body: ResponsesRequest, request: Request, service: TheService, namespace: TheNamespace) -> Response:
    """A response. One that names no session, and no response to go on from, begins a session of its own."""
    service.check_model(body.model)
    messages = body.messages
    check_messages(service, len(messages))
    of = whose(request.headers, body)
    if body.previous_response_id is not None:
        previous = body.previous_response_id.removeprefix(PREFIX)
        of = await run_in_threadpool(_continued, service.engine, namespace, of, previous)
    elif of.session is None and body.store is not False:
        of = replace(of, session=f"response-{uuid.uuid4().hex[:16]}")
    wants_logprobs = body.top_logprobs is not None or bool(body.include)
    options = sampling_options(body, of, namespace) | TurnOptions(
        max_new_tokens=body.max_output_tokens or service.config.max_new_tokens,
        response_format=body.text.format.plain if body.text is not None and body.text.format is not None else None,
        logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
    )
    made = _Response(of, body)
    items = turn_items(service, cast("list[MessageLike]", messages), options, snapshot=made.snapshot)
    if not body.stream:
        turn = await whole_turn(request, items)
        request.state.log |= usage_fields(turn)
        return JSONResponse(made.whole(turn), headers=named_in_headers(of.session, turn.snapshot))
    first = await begun(request, items)
    return EventStream(made.events(first, request, namespace), named_in_headers(of.session, None))


def _continued(engine: Engine, namespace: Namespace, of: Whose, snapshot: str) -> Whose:
    """The session that goes on from a snapshot: the one whose head it is, or else a fork that begins there.

    Raises:
        ApiError: the snapshot is unknown, somebody else's, or of another session than the one that is named.
    """
    unknown = ApiError(
        404,
        f"response {PREFIX + snapshot!r} is not known: it was pruned or forgotten, or its session was rolled back",
        code="previous_response_not_found",
        param="previous_response_id",
    )
    try:
        found = engine.store.snapshot(snapshot)
    except StoreError as error:
        raise unknown from error
    if not namespace.owns(found.session):
        raise unknown
    through = [name for name in engine.store.through(snapshot) if namespace.owns(name)]
    if of.session is not None and namespace.stored(of.session) in through:
        through = [namespace.stored(of.session)]
    elif of.session is not None or not through:
        raise unknown
    at_head = [name for name in through if engine.info(name).head == snapshot]
    owner = found.session if found.session in (at_head or through) else (at_head or through)[0]
    if at_head:
        return Whose(namespace.shown(owner), of.thread or found.thread)
    fork = f"{namespace.shown(owner)[:180]}~{uuid.uuid4().hex[:8]}"
    engine.fork(owner, namespace.stored(fork), at=snapshot)
    return Whose(fork, of.thread or found.thread)


class _Response:
    """A turn as a response, and the events of it as it comes."""

    def __init__(self, of: Whose, body: ResponsesRequest) -> None:
        self._of, self._body, self._created = of, body, int(time.time())
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self.snapshot = new_id()  # of the turn, where it is kept: the response's id is known before
        self._number = 0

    def whole(self, turn: Turn) -> dict[str, object]:
        """The finished response."""
        cut = turn.finish_reason == "length"
        usage = turn.usage
        return self._body_of(
            status="incomplete" if cut else "completed",
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            output=self._output(turn),
            usage={
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens,
            },
            snapshot=turn.snapshot,
        )

    async def events(
        self, items: AsyncIterator[str | Turn], request: Request, namespace: Namespace
    ) -> AsyncGenerator[str, None]:
        """Everything that OpenAI's API says while a response is made."""
        begun = self._body_of(status="in_progress", output=[], usage=None)
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        text = ""
        try:
            async for item in items:
                if isinstance(item, str):
                    if not text:
                        for opened in self._opened():
                            yield opened
                    text += item
                    logprobs = plain_logprobs(item.logprobs if isinstance(item, ScoredText) else ())
                    yield self._event("response.output_text.delta", **self._place(), delta=item, logprobs=logprobs)
                    continue
                request.state.log |= usage_fields(item)
                whole = self.whole(item)
                for number, output in enumerate(cast("list[dict[str, object]]", whole["output"])):
                    for closed in self._closed(number, output, spoken=bool(text)):
                        yield closed
                kind = "response.completed" if whole["status"] == "completed" else "response.incomplete"
                yield self._event(kind, response=whole)
        except Exception as error:
            problem = cast("dict[str, object]", stream_error(error, request, namespace)["error"])
            yield self._event("error", code=problem["code"], message=problem["message"], param=problem["param"])

    def _body_of(self, *, snapshot: str | None = None, **changing: object) -> dict[str, object]:
        body = self._body
        kept = {"session": self._of.session, "snapshot": snapshot}
        return {
            "id": PREFIX + self.snapshot,
            "object": "response",
            "created_at": self._created,
            "model": body.model,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "previous_response_id": body.previous_response_id,
            "conversation": None if self._of.session is None else {"id": self._of.session},
            "temperature": body.temperature,
            "top_p": body.top_p,
            "max_output_tokens": body.max_output_tokens,
            "tools": body.tools or [],
            "tool_choice": body.tool_choice or "auto",
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "text": {"format": {"type": "text"}} if body.text is None else body.text.model_dump(by_alias=True),
            "truncation": body.truncation or "disabled",
            "store": self._of.session is not None,
            "metadata": {**(body.metadata or {}), **{name: value for name, value in kept.items() if value is not None}},
            **changing,
        }

    def _output(self, turn: Turn) -> list[dict[str, object]]:
        output = []
        if turn.reply.content or not turn.reply.tool_calls:
            logprobs = plain_logprobs(turn.logprobs or ())
            status = "incomplete" if turn.finish_reason == "length" else "completed"
            output.append(self._message(status, [_text(turn.reply.content, logprobs)]))
        for call in turn.reply.tool_calls:
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            made = {"id": f"fc_{call.id}", "call_id": call.id, "name": call.name, "arguments": arguments}
            output.append({"type": "function_call", "status": "completed", **made})
        return output

    def _message(self, status: str, content: list[dict[str, object]]) -> dict[str, object]:
        return {"type": "message", "id": self._message_id, "role": "assistant", "status": status, "content": content}

    def _opened(self) -> list[str]:
        message = self._message("in_progress", [])
        return [
            self._event("response.output_item.added", output_index=0, item=message),
            self._event("response.content_part.added", **self._place(), part=_text("", [])),
        ]

    def _closed(self, number: int, output: dict[str, object], *, spoken: bool) -> list[str]:
        events = []
        if output["type"] == "message":
            if not spoken:
                events += self._opened()
            (part,) = cast("list[dict[str, object]]", output["content"])
            events.append(
                self._event("response.output_text.done", **self._place(), text=part["text"], logprobs=part["logprobs"])
            )
            events.append(self._event("response.content_part.done", **self._place(), part=part))
        else:
            empty = {**output, "arguments": "", "status": "in_progress"}
            events.append(self._event("response.output_item.added", output_index=number, item=empty))
            arguments, place = output["arguments"], {"item_id": output["id"], "output_index": number}
            events.append(self._event("response.function_call_arguments.delta", **place, delta=arguments))
            events.append(
                self._event("response.function_call_arguments.done", **place, name=output["name"], arguments=arguments)
            )
        events.append(self._event("response.output_item.done", output_index=number, item=output))
        return events

    def _place(self) -> dict[str, object]:
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: object) -> str:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **fields}, kind=kind)


def _text(text: str, logprobs: list[dict[str, object]]) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
