"""The `openai` client's responses: ids are snapshots, conversations are sessions."""

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from tests.serve.conftest import KEYS, MODEL, Running, Serve

CLOCK = {
    "type": "function",
    "name": "clock",
    "description": "Tells the time.",
    "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]},
}


class Dog(BaseModel):
    name: Literal["Rex", "Fido"]
    good: bool


def test_a_response_goes_on_from_the_one_before(server: Running) -> None:
    client = server.openai()
    first = client.responses.create(model=MODEL, input="My dog is called Rex.", instructions="Be brief.")
    assert first.status in ("completed", "incomplete")
    assert first.output_text
    second = client.responses.create(model=MODEL, input="And?", previous_response_id=first.id)
    assert first.conversation is not None
    assert second.conversation is not None
    assert first.conversation.id == second.conversation.id
    info = server.engine.info(first.conversation.id)
    assert (info.turns, info.messages, f"resp_{info.head}") == (2, 4, second.id)


def test_going_on_from_an_old_one_forks(server: Running) -> None:
    client = server.openai()
    first = client.responses.create(model=MODEL, input="one", conversation="alice")
    second = client.responses.create(model=MODEL, input="two", previous_response_id=first.id)
    other = client.responses.create(model=MODEL, input="deux", previous_response_id=first.id)
    assert other.conversation is not None
    assert other.conversation.id.startswith("alice~")
    assert f"resp_{server.engine.info('alice').head}" == second.id
    third = client.responses.create(model=MODEL, input="trois", previous_response_id=other.id)
    assert third.conversation is not None
    assert third.conversation.id == other.conversation.id
    assert server.engine.info(third.conversation.id).turns == 3


def test_without_store_nothing_is_kept(server: Running) -> None:
    made = server.openai().responses.create(model=MODEL, input="hi", store=False)
    assert made.store is False
    assert server.engine.sessions() == []


def test_unknown_and_foreign_ids_are_not_found(serve: Serve) -> None:
    server = serve(keys=KEYS)
    alice, bob = server.openai("key-of-alice"), server.openai("key-of-bob-1")
    theirs = alice.responses.create(model=MODEL, input="secret", conversation="s")
    for id in (theirs.id, "resp_nowhere"):
        with pytest.raises(openai.NotFoundError) as caught:
            bob.responses.create(model=MODEL, input="what?", previous_response_id=id)
        assert caught.value.code == "previous_response_not_found"
        assert caught.value.param == "previous_response_id"
    assert bob.responses.create(model=MODEL, input="mine", conversation="s").id != theirs.id
    assert {info.name: info.turns for info in server.engine.sessions()} == {"alice:s": 1, "bob:s": 1}


def test_events_come_in_order_and_add_up(server: Running) -> None:
    client = server.openai()
    with client.responses.stream(model=MODEL, input="hi", conversation="alice") as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    responses = [event.response for event in events if hasattr(event, "response")]
    assert [response.id for response in responses] == [f"resp_{server.engine.info('alice').head}"] * 3
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert responses[-1].output_text
    assert server.engine.info("alice").turns == 1


def test_logprobs_come_with_their_deltas(server: Running) -> None:
    made = server.openai().responses.create(
        model=MODEL, input="hi", include=["message.output_text.logprobs"], max_output_tokens=5, stream=True
    )
    events = list(made)
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert [token.token for delta in deltas for token in delta.logprobs] == [token.token for token in done.logprobs]
    assert ["".join(token.token for token in delta.logprobs) for delta in deltas] == [delta.delta for delta in deltas]


def test_functions_are_called_and_answered(server: Running) -> None:
    client = server.openai()
    asked = client.responses.create(
        model=MODEL,
        input="time?",
        tools=[CLOCK],  # type: ignore[list-item]
        tool_choice={"type": "function", "name": "clock"},
        max_output_tokens=256,
        conversation="alice",
    )
    (call,) = asked.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["zone"] in ("UTC", "CET")
    client.responses.create(
        model=MODEL,
        previous_response_id=asked.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "noon"}],
    )
    line = server.engine.log("alice")
    assert [entry.role for turn in line for entry in turn.entries] == ["user", "assistant", "tool", "assistant"]


def test_streamed_functions_are_called_whole(server: Running) -> None:
    with server.openai().responses.stream(
        model=MODEL,
        input="time?",
        tools=[CLOCK],  # type: ignore[list-item]
        tool_choice="required",
        max_output_tokens=256,
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    assert [item.type for item in final.output] == ["function_call"]


def test_structured_output_parses(server: Running) -> None:
    made = server.openai().responses.parse(model=MODEL, input="a dog", text_format=Dog, max_output_tokens=80)
    assert isinstance(made.output_parsed, Dog)


def test_logprobs_and_bad_fields(server: Running) -> None:
    client = server.openai()
    made = client.responses.create(model=MODEL, input="hi", include=["message.output_text.logprobs"], top_logprobs=2)
    (message,) = made.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs
    assert len(part.logprobs[0].top_logprobs) == 2
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="hi", background=True)
    assert caught.value.param == "background"
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="hi", tools=[{"type": "web_search"}])
    assert caught.value.code == "invalid_value"
