"""Whose memory a call has used."""

from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig

ALICE: RunnableConfig = {"configurable": {"session_id": "alice"}}
ALICE_IN_T1: RunnableConfig = {"configurable": {"session_id": "alice", "thread_id": "t1"}}
HELLO: Any = {"messages": [("user", "hello")]}
Names = Callable[[], list[str]]


def session_of(message: Any) -> str | None:
    assert isinstance(message, AIMessage)
    handle = message.response_metadata.get("delta_mem")
    return None if handle is None else str(handle["session"])
