"""LlamaIndex behind a server: LLM and memory unchanged, and its own client for servers like OpenAI's."""

from collections.abc import Iterator

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.llms.openai_like import OpenAILike

from deltamem_agents import DeltaMemEngine, RemoteEngine
from llama_index_deltamem import DeltaMemLLM, DeltaMemory
from tests.serve.conftest import KEYS, MODEL, Running, Serve


@pytest.fixture
def running(serve: Serve) -> Running:
    return serve(keys=KEYS)


@pytest.fixture
def engine(running: Running) -> Iterator[RemoteEngine]:
    with DeltaMemEngine.connect(running.url, api_key="key-of-alice") as remote:
        yield remote


def test_a_chat_engine_talks_and_remembers(engine: RemoteEngine, running: Running) -> None:
    llm = DeltaMemLLM(engine=engine, max_new_tokens=4)
    memory = DeltaMemory(engine=engine, session_id="s", window=2)
    chat = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
    for text in ("My dog is called Rex.", "What is my dog called?"):
        assert str(chat.chat(text))
    assert running.engine.info("alice:s").messages == 4
    assert next(message.content for message in memory.get_all()) == "My dog is called Rex."
    again = DeltaMemory(engine=engine, session_id="s")
    assert len(again.get_all()) == 4
    memory.reset()
    assert llm.metadata.context_window == running.engine.context


async def test_streams_and_async(engine: RemoteEngine) -> None:
    llm = DeltaMemLLM(engine=engine, max_new_tokens=4, session_id="s")
    said = [ChatMessage(role="user", content="hi")]
    whole = (await llm.achat(said)).message.content
    assert list(llm.stream_chat(said))[-1].message.content == whole
    assert [piece async for piece in await llm.astream_chat(said)][-1].message.content == whole


def test_llama_indexs_own_client(serve: Serve, running: Running) -> None:
    llm = OpenAILike(
        model=MODEL,
        api_base=f"{running.url}/v1",
        api_key="key-of-alice",
        is_chat_model=True,
        max_tokens=4,
        max_retries=0,
        default_headers={"X-Session-ID": "s"},
    )
    assert llm.chat([ChatMessage(role="user", content="hi")]).message.content
    assert "".join(piece.delta or "" for piece in llm.stream_chat([ChatMessage(role="user", content="again")]))
    assert running.engine.info("alice:s").turns == 2
