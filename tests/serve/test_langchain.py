"""LangChain behind a server: `ChatDeltaMem` and its middleware unchanged, and LangChain's own client for OpenAI."""

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import ValidationError

from deltamem_agents import ConfigError, DeltaMemEngine, DeltaMemModel, RemoteEngine, SessionError
from deltamem_agents.serve import ServeConfig
from deltamem_agents.serve.service import Service
from langchain_deltamem import ChatDeltaMem
from tests.langchain.conftest import model, said, tiny_model, tokenizer  # noqa: F401
from tests.langchain.test_middleware import TestSession  # noqa: F401  # run here once more, on the engine below
from tests.serve.conftest import KEYS, MODEL, Running, Serve, serving


@pytest.fixture
def running(tiny_model: DeltaMemModel, tokenizer: Any) -> Iterator[Running]:  # noqa: F811
    engine = DeltaMemEngine(tiny_model, tokenizer, store=":memory:")
    with serving(engine, Service(ServeConfig(model_id=MODEL, max_new_tokens=8), None)) as running:
        yield running


@pytest.fixture
def engine(running: Running) -> Iterator[RemoteEngine]:
    """What the imported fixtures and tests run on."""
    with DeltaMemEngine.connect(running.url) as remote:
        yield remote


@tool
def clock(zone: str) -> str:
    """Tells the time."""
    return "noon"


def test_by_its_address(serve: Serve) -> None:
    server = serve(keys=KEYS)
    model = ChatDeltaMem(base_url=server.url, api_key="key-of-alice", session_id="s", max_new_tokens=4)  # noqa: F811
    first = model.invoke("My dog is called Rex.")
    assert first.response_metadata["delta_mem"]["session"] == "s"
    chunks = list(model.stream([HumanMessage("My dog is called Rex."), first, HumanMessage("And?")]))
    assert "".join(str(chunk.content) for chunk in chunks)
    assert server.engine.info("alice:s").messages == 4
    assert model.get_num_tokens("the user") == len(server.engine.token_ids("the user"))
    called = model.bind_tools([clock], tool_choice="clock").invoke("time?", max_new_tokens=200)
    assert called.tool_calls[0]["name"] == "clock"


async def test_async_by_its_address(serve: Serve) -> None:
    server = serve()
    model = ChatDeltaMem(base_url=server.url, session_id="s", max_new_tokens=4)  # noqa: F811
    reply = await model.ainvoke("one")
    again = [chunk async for chunk in model.astream([HumanMessage("one"), reply, HumanMessage("two")])]
    assert again
    assert server.engine.info("s").messages == 4


def test_what_makes_no_sense_is_refused(serve: Serve) -> None:
    server = serve()
    with pytest.raises(ValidationError, match="base_url is given, so model would go unused"):
        ChatDeltaMem(base_url=server.url, model="some/folder")
    with pytest.raises(ConfigError, match="the server runs"):
        ChatDeltaMem(base_url=server.url).invoke("hi", model="other")
    with pytest.raises(SessionError):
        ChatDeltaMem(base_url=server.url, session_id=" bad ").invoke("hi")


def test_langchains_own_client(serve: Serve) -> None:
    server = serve()
    model = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model=MODEL, max_retries=0)  # type: ignore[arg-type] # noqa: F811
    alice = model.bind(user="alice")
    first = alice.invoke("My dog is called Rex.")
    alice.invoke([HumanMessage("My dog is called Rex."), AIMessage(first.content), HumanMessage("And?")])
    assert server.engine.info("alice").messages == 4
    assert "".join(str(chunk.content) for chunk in model.stream("hi"))
    called = model.bind_tools([clock], tool_choice="clock").invoke("time?", max_tokens=200)
    assert called.tool_calls[0]["name"] == "clock"


class TestStandard(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatDeltaMem

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": "http://127.0.0.1:9", "api_key": "key"}
