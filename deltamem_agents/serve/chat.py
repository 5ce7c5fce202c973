"""`POST /v1/chat/completions`."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import cast

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from deltamem_agents.engine import Turn
from deltamem_agents.engine.options import TurnOptions
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.generation import ScoredText, TokenLogprob
from deltamem_agents.messages import MessageLike
from deltamem_agents.serve.chat_schema import ChatRequest, SamplingFields
from deltamem_agents.serve.errors import ApiError, of_engine
from deltamem_agents.serve.keys import Namespace
from deltamem_agents.serve.logs import log
from deltamem_agents.serve.service import Service, TheNamespace, TheService
from deltamem_agents.serve.turns import EventStream, begun, turn_items, whole_turn
from deltamem_agents.serve.whose import Whose, named_in_headers, whose

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(
    body: ChatRequest, request: Request, service: TheService, namespace: TheNamespace
) -> Response:
    """A reply, of the memory that the request names: `X-Session-ID`, `session_id`, `user` and their like."""
    service.check_model(body.model)
    check_messages(service, len(body.messages))
    for number, said in enumerate(body.messages):
        if said.name is not None and said.role != "tool":
            raise ApiError(
                400,
                f"the name of a message of the {said.role} is not served: put it into the text",
                code="unsupported_parameter",
                param=f"messages[{number}].name",
            )
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs without logprobs: true: ask for both", code="invalid_value", param="logprobs")
    of = whose(request.headers, body)
    options = sampling_options(body, of, namespace) | TurnOptions(
        max_new_tokens=body.max_completion_tokens or body.max_tokens or service.config.max_new_tokens,
        seed=body.seed,
        stop=body.stop,
        response_format=body.response_format,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    messages = cast("list[MessageLike]", [message.plain for message in body.messages])
    items = turn_items(service, messages, options)
    reply = _Completion(service, of, body)
    if not body.stream:
        turn = await whole_turn(request, items)
        request.state.log |= usage_fields(turn)
        return JSONResponse(reply.whole(turn), headers=named_in_headers(of.session, turn.snapshot))
    first = await begun(request, items)
    events = reply.events(first, request, namespace)
    return EventStream(events, named_in_headers(of.session, None))


def check_messages(service: Service, count: int) -> None:
    """Refuses too many messages.

    Raises:
        ApiError: gives the numbers.
    """
    if count > service.config.max_messages:
        raise ApiError(
            400,
            f"there are {count} messages, {service.config.max_messages} at most are taken: the memory knows the rest",
            code="too_many_messages",
            param="messages",
        )


def sampling_options(body: SamplingFields, of: Whose, namespace: Namespace) -> TurnOptions:
    """The options that chat completions and responses have in common."""
    return TurnOptions(
        session=None if of.session is None else namespace.stored(of.session),
        thread=of.thread if of.session is not None else None,
        memory=body.memory,
        recent_messages=body.recent_messages,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        repetition_penalty=body.repetition_penalty,
        tools=body.tools,
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls,
    )


def usage_fields(turn: Turn) -> dict[str, object]:
    """What the log says of a turn."""
    usage = turn.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "finish_reason": turn.finish_reason,
    }


def stream_error(error: Exception, request: Request, namespace: Namespace) -> dict[str, object]:
    """An error in the middle of a stream, whose status has been sent already."""
    if isinstance(error, DeltaMemError):
        error = of_engine(error, hide=namespace.prefix)
    if not isinstance(error, ApiError):
        log.error("a stream broke", exc_info=error, extra={"fields": {"request_id": request.state.log["request_id"]}})
        error = ApiError(500, "the server failed: see its log", code="internal_error")
    request.state.log["error"] = error.code
    return error.body


def event(data: object, *, kind: str | None = None) -> str:
    """A server-sent event."""
    name = "" if kind is None else f"event: {kind}\n"
    return f"{name}data: {json.dumps(data, ensure_ascii=False)}\n\n"


class _Completion:
    """A turn as a chat completion."""

    def __init__(self, service: Service, of: Whose, body: ChatRequest) -> None:
        self._of, self._body = of, body
        self._common = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": service.engine.fingerprint,
        }

    def whole(self, turn: Turn) -> dict[str, object]:
        """The answer to a request that doesn't stream."""
        calls = _calls(turn)
        content = turn.reply.content or (None if calls else "")
        message: dict[str, object] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "logprobs": _logprobs(turn.logprobs), "finish_reason": _reason(turn)}
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(turn),
            "metadata": self._metadata(turn),
        }

    async def events(
        self, items: AsyncIterator[str | Turn], request: Request, namespace: Namespace
    ) -> AsyncGenerator[str, None]:
        """The answer as it comes."""
        yield self._chunk({"role": "assistant", "content": ""})
        told = 0  # log-probabilities
        try:
            async for item in items:
                if isinstance(item, str):
                    logprobs = item.logprobs if isinstance(item, ScoredText) else ()
                    told += len(logprobs)
                    yield self._chunk({"content": item}, logprobs=_logprobs(logprobs or None))
                    continue
                request.state.log |= usage_fields(item)
                calls = [{"index": number, **call} for number, call in enumerate(_calls(item))]
                if calls:
                    yield self._chunk({"tool_calls": calls})
                metadata = self._metadata(item)
                rest = _logprobs((item.logprobs or ())[told:] or None)  # of what was not shown
                yield self._chunk({}, reason=_reason(item), logprobs=rest, metadata=metadata)
                if self._body.stream_options is not None and self._body.stream_options.include_usage:
                    yield event(
                        {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": _usage(item)}
                    )
        except Exception as error:
            yield event(stream_error(error, request, namespace))
        yield "data: [DONE]\n\n"

    def _chunk(
        self, delta: dict[str, object], *, reason: str | None = None, logprobs: object = None, **more: object
    ) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**self._common, "object": "chat.completion.chunk", "choices": [choice], **more})

    def _metadata(self, turn: Turn) -> dict[str, object]:
        """The request's, and where the turn was kept."""
        kept = {"session": self._of.session, "snapshot": turn.snapshot}
        return {**(self._body.metadata or {}), **{name: value for name, value in kept.items() if value is not None}}


def _calls(turn: Turn) -> list[dict[str, object]]:
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in turn.reply.tool_calls
    ]


def _reason(turn: Turn) -> str:
    return "tool_calls" if turn.reply.tool_calls and turn.finish_reason == "stop" else turn.finish_reason


def _usage(turn: Turn) -> dict[str, object]:
    usage = turn.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _logprobs(logprobs: Sequence[TokenLogprob] | None) -> dict[str, object] | None:
    return None if logprobs is None else {"content": plain_logprobs(logprobs), "refusal": None}


def plain_logprobs(logprobs: Sequence[TokenLogprob]) -> list[dict[str, object]]:
    """Log-probabilities in the shape of OpenAI's API."""
    return [
        {**_token(one.token, one.logprob), "top_logprobs": [_token(*other) for other in one.top]} for one in logprobs
    ]


def _token(text: str, logprob: float) -> dict[str, object]:
    whole = "\ufffd" not in text  # a part of a character has no text
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode()) if whole else None}
