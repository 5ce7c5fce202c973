"""What a harness says in the human's name is shown and replied to; what the human typed is what is remembered."""

import json
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    add_notification_metadata,
    merge_message_runs,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from deltamem_agents import DeltaMemEngine
from langchain_deltamem import ChatDeltaMem
from langchain_deltamem.calls import EngineCall
from tests.langchain.conftest import Said

DONE = add_notification_metadata(HumanMessage("Task 42 is done.", id="n"), source="async_subagent", data={"task": 42})
SUMMARY = add_notification_metadata(HumanMessage("A summary: he has a dog.", id="s"), source="summarization")
REX = HumanMessage("My dog is Rex.", id="h")


def written(engine: DeltaMemEngine, session: str) -> list[str]:
    """What was absorbed, of all that the session holds."""
    info = engine.store.session(session)
    assert info is not None
    entries = [entry for turn in engine.store.line(info.head or "") for entry in turn.entries]
    texts = [json.loads(entry.text or "") for entry in entries]
    return [text["content"] for text in texts if text["absorb"] and text["role"] == "user"]


@pytest.fixture
def stored() -> Any:
    serializer = JsonPlusSerializer()
    return lambda message: serializer.loads_typed(serializer.dumps_typed(message))


@pytest.mark.parametrize("mark", ["async_subagent", "reminder", "summarization"])
def test_a_notification_alone_is_replied_to_and_writes_nothing(
    model: ChatDeltaMem, engine: DeltaMemEngine, said: Said, mark: str
) -> None:
    told = add_notification_metadata(DONE, source=mark)
    reply = model.invoke([told], session_id="alice")
    assert said("alice") == [("user", "Task 42 is done."), ("assistant", reply.text)]
    assert written(engine, "alice") == []
    model.invoke([told], session_id="bob", memory="off")
    engine.absorb([{"role": "assistant", "content": reply.text}], session="bob")  # not absorbed either
    assert engine.state("alice").tensor.allclose(engine.state("bob").tensor)


def test_from_a_checkpoint(model: ChatDeltaMem, engine: DeltaMemEngine, stored: Any) -> None:
    model.invoke([stored(DONE)], session_id="alice")
    assert written(engine, "alice") == []


def test_it_stands_where_it_was_said(model: ChatDeltaMem, said: Said, engine: DeltaMemEngine) -> None:
    history: list[BaseMessage] = [REX]
    history.append(model.invoke(history, session_id="alice"))
    history.append(DONE)
    history.append(model.invoke(history, session_id="alice"))
    history.append(HumanMessage("And a cat.", id="c"))
    model.invoke(history, session_id="alice")
    assert [content for role, content in said("alice") if role == "user"] == [REX.text, DONE.text, "And a cat."]
    assert written(engine, "alice") == [REX.text, "And a cat."]
    shown = EngineCall.parse(history, keywords={"session_id": "a"}, settings={}, stop=None, model="m", adapter=None)
    assert [message.absorb for message in shown.messages] == [True, True, False, True, True]


@pytest.mark.parametrize("run", [[SUMMARY, REX], [REX, SUMMARY], [DONE, REX], [SUMMARY, DONE, REX]], ids=str)
def test_what_is_merged_with_the_humans_words_is_theirs(
    model: ChatDeltaMem, engine: DeltaMemEngine, run: list[BaseMessage]
) -> None:
    """There is no seam: nothing that they typed may be lost, now or in the next turn."""
    (merged,) = merge_message_runs(run)
    history: list[Any] = [SystemMessage("Be kind."), merged]
    history.append(model.invoke(history, session_id="alice"))
    assert written(engine, "alice") == [merged.text]
    assert REX.text in merged.text
    history.append(HumanMessage("And a cat.", id="c"))
    model.invoke(history, session_id="alice")
    assert written(engine, "alice") == [merged.text, "And a cat."]


def test_a_summary_in_front_is_a_summary(model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
    model.invoke([SUMMARY, AIMessage("Yes."), REX], session_id="alice")
    assert written(engine, "alice") == [REX.text]
