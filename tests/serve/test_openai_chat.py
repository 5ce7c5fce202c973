"""The `openai` client's chat completions against a real server: chat, streams, tools, structured output, logprobs."""

import json
import math
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from tests.serve.conftest import MODEL, Running, Serve, user

CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tells the time.",
        "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]},
    },
}


class Dog(BaseModel):
    name: Literal["Rex", "Fido"]
    good: bool


def test_a_chat_is_what_the_engine_says(server: Running) -> None:
    client = server.openai()
    reply = client.chat.completions.create(model=MODEL, messages=[user("hi")], max_tokens=5)  # type: ignore[list-item]
    turn = server.engine.generate([user("hi")], max_new_tokens=5)
    assert reply.choices[0].message.content == turn.reply.content
    assert reply.choices[0].finish_reason == turn.finish_reason
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (
        turn.usage.prompt_tokens,
        turn.usage.completion_tokens,
    )
    assert server.engine.sessions() == []
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_full_histories_are_absorbed_once(server: Running) -> None:
    client, said = server.openai(), [user("one")]
    for text in ("two", "three", "four"):
        reply = client.chat.completions.create(model=MODEL, messages=said, user="alice", max_completion_tokens=4)  # type: ignore[call-overload]
        message = reply.choices[0].message
        said += [message.model_dump(exclude_none=True), user(text)]
    info = server.engine.info("alice")
    assert (info.turns, info.messages) == (3, 6)
    assert reply.model_extra["metadata"] == {"session": "alice", "snapshot": info.head}


def test_streams_join_to_the_same_text_and_end_with_usage_and_handle(server: Running) -> None:
    client = server.openai()
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[user("hi")],  # type: ignore[list-item]
        stream=True,
        stream_options={"include_usage": True},
        user="alice",
        metadata={"ticket": "7"},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == server.engine.generate([user("hi")], max_new_tokens=8, session="bob").reply.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    ending = chunks[-2]
    assert ending.choices[0].finish_reason in ("stop", "length")
    head = server.engine.info("alice").head
    assert ending.model_extra["metadata"] == {"ticket": "7", "session": "alice", "snapshot": head}


def test_tools_are_called_and_answered(server: Running) -> None:
    client, said = server.openai(), [user("what time is it?")]
    reply = client.chat.completions.create(  # type: ignore[call-overload]
        model=MODEL, messages=said, tools=[CLOCK], tool_choice="required", max_tokens=256, user="alice"
    )
    (call,) = reply.choices[0].message.tool_calls
    assert reply.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")
    said += [
        reply.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "noon"},
    ]
    client.chat.completions.create(model=MODEL, messages=said, tools=[CLOCK], user="alice", tool_choice="none")  # type: ignore[call-overload]
    line = server.engine.log("alice")
    assert [entry.role for turn in line for entry in turn.entries] == ["user", "assistant", "tool", "assistant"]


def test_streamed_calls_come_whole(server: Running) -> None:
    with server.openai().chat.completions.stream(
        model=MODEL,
        messages=[user("what time is it?")],  # type: ignore[list-item]
        tools=[CLOCK],  # type: ignore[list-item]
        tool_choice={"type": "function", "function": {"name": "clock"}},
        max_tokens=256,
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.name == "clock"


def test_structured_output_parses(server: Running) -> None:
    reply = server.openai().chat.completions.parse(
        model=MODEL,
        messages=[user("a dog")],  # type: ignore[list-item]
        response_format=Dog,
        max_tokens=80,
    )
    assert isinstance(reply.choices[0].message.parsed, Dog)


def test_logprobs_are_the_models(server: Running) -> None:
    reply = server.openai().chat.completions.create(
        model=MODEL,
        messages=[user("hi")],  # type: ignore[list-item]
        logprobs=True,
        top_logprobs=3,
        max_tokens=4,
    )
    assert reply.choices[0].logprobs is not None
    content = reply.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 4
    for token in content:
        assert token.token == token.top_logprobs[0].token  # greedy
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        values = [other.logprob for other in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.0 + 1e-6
    assert "".join(token.token for token in content) == reply.choices[0].message.content


@pytest.mark.parametrize("stop", [None, "##"])
def test_logprobs_come_with_the_text_they_are_of(server: Running, stop: str | None) -> None:
    ask = {"model": MODEL, "messages": [user("hi")], "logprobs": True, "top_logprobs": 2, "max_tokens": 6, "stop": stop}
    whole = server.openai().chat.completions.create(**ask)  # type: ignore[call-overload]
    chunks = list(server.openai().chat.completions.create(**ask, stream=True))  # type: ignore[call-overload]
    scored = [(chunk.choices[0].delta.content, chunk.choices[0].logprobs) for chunk in chunks]
    pieces = [(text, logprobs.content) for text, logprobs in scored if text]
    assert len(pieces) > 1
    for text, tokens in pieces:
        assert "".join(token.token for token in tokens) == text
    told = [token for _, logprobs in scored if logprobs for token in logprobs.content]
    expected = whole.choices[0].logprobs.content
    assert [(t.token, len(t.top_logprobs)) for t in told] == [(t.token, 2) for t in expected]
    assert [t.logprob for t in told] == pytest.approx([t.logprob for t in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"n": 2}, "n"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"store": True}, "store"),
        ({"functions": []}, "functions"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"stream_options": {"continuous": True}}, "stream_options.continuous"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "hi", "colour": "red"}]}, "messages[0].colour"),
        ({"messages": [{"role": "user", "content": "hi", "name": "bob"}]}, "messages[0].name"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_is_not_served_is_refused_by_name(server: Running, extra: dict[str, object], param: str | None) -> None:
    body = {"model": MODEL, "messages": [user("hi")], **extra}
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if param is None:
        assert error["param"].startswith("messages[0].content")
    else:
        assert error["param"] == param


def test_served_at_their_defaults_fields_do_no_harm(server: Running) -> None:
    reply = server.openai().chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ],
        n=1,
        frequency_penalty=0,
        presence_penalty=0.0,
        store=False,
        service_tier="auto",
        stop=None,
    )
    assert reply.choices[0].message.role == "assistant"


def test_an_unknown_model_and_messages_that_cannot_be(server: Running) -> None:
    client = server.openai()
    with pytest.raises(openai.NotFoundError, match="ask for 'tiny'"):
        client.chat.completions.create(model="gpt-4o", messages=[user("hi")])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError, match="only a tool's message answers a call") as caught:
        client.chat.completions.create(model=MODEL, messages=[{**user("hi"), "tool_call_id": "c"}])  # type: ignore[list-item]
    assert caught.value.code == "invalid_messages"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[user("a" * 9000)])  # type: ignore[list-item]
    assert caught.value.code == "context_length_exceeded"


def test_an_edit_and_another_reply_are_branches(serve: Serve) -> None:
    server = serve()
    with server.client() as client:

        def say(*messages: dict[str, object]) -> dict[str, object]:
            body = {"model": MODEL, "messages": messages, "session_id": "alice", "max_tokens": 3}
            answer = client.post("/v1/chat/completions", json=body).json()
            return answer  # type: ignore[no-any-return]

        first = {**user("one"), "id": "m1"}
        reply = say(first)
        assert say({**user("uno"), "id": "m1"})["metadata"] != reply["metadata"]  # edited
        assert server.engine.info("alice").messages == 2
        assert len(server.engine.log("alice")) == 2
