"""The ways to call the model: they say the same, and say what they did once."""

import asyncio
import threading
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableConfig

from deltamem_agents import DeltaMemEngine
from langchain_deltamem import ChatDeltaMem

PROMPT = "My dog is called Rex."


@pytest.fixture(params=[{}, {"temperature": 1.0, "seed": 3}, {"stop": ["Y"]}], ids=["greedy", "sampled", "stopped"])
def settled(request: pytest.FixtureRequest, model: ChatDeltaMem) -> ChatDeltaMem:
    """Settings under which every call says the same."""
    return model.model_copy(update={"max_new_tokens": 12, **request.param})


class TestSameText:
    def test_stream_adds_up_to_invoke(self, settled: ChatDeltaMem) -> None:
        chunks = list(settled.stream(PROMPT))
        assert len(chunks) > 2
        assert "".join(str(chunk.content) for chunk in chunks) == settled.invoke(PROMPT).content != ""

    async def test_async_calls_say_the_same(self, settled: ChatDeltaMem) -> None:
        expected = settled.invoke(PROMPT).content
        assert (await settled.ainvoke(PROMPT)).content == expected
        assert "".join([str(chunk.content) async for chunk in settled.astream(PROMPT)]) == expected

    async def test_batches_say_the_same(self, model: ChatDeltaMem) -> None:
        prompts: list[Any] = [PROMPT, "What?", PROMPT]
        expected = [model.invoke(prompt).content for prompt in prompts]
        assert [reply.content for reply in model.batch(prompts)] == expected
        assert [reply.content for reply in await model.abatch(prompts)] == expected

    def test_with_a_session_streaming_leaves_the_same_memory(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        model.invoke(PROMPT, session_id="invoked")
        list(model.stream(PROMPT, session_id="streamed"))
        assert engine.state("invoked").tensor.allclose(engine.state("streamed").tensor, atol=1e-5)

    @pytest.mark.parametrize("stop", [["Y"], [], "gY"])
    def test_stop_of_the_call_beats_the_model_s(self, model: ChatDeltaMem, stop: Any) -> None:
        stopping = model.model_copy(update={"stop": ["Z"], "max_new_tokens": 12})
        assert stopping.invoke(PROMPT, stop=stop).content == model.invoke(PROMPT, stop=stop, max_new_tokens=12).content

    def test_disabled_streaming_gives_one_chunk(self, engine: DeltaMemEngine) -> None:
        for setting in ({"streaming": False}, {"disable_streaming": True}):
            model = ChatDeltaMem(engine=engine, max_new_tokens=6, **setting)  # type: ignore[arg-type]
            assert len(list(model.stream(PROMPT))) == 1

    def test_streaming_true_streams_inside_invoke(self, engine: DeltaMemEngine) -> None:
        tokens: list[str] = []

        class Handler(BaseCallbackHandler):
            def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
                tokens.append(token)

        model = ChatDeltaMem(engine=engine, max_new_tokens=6, streaming=True)
        reply = model.invoke(PROMPT, {"callbacks": [Handler()]}, session_id="alice")
        assert "".join(tokens) == reply.content
        assert reply.response_metadata["delta_mem"]["session"] == "alice"

    def test_the_stream_keyword_is_langchain_s(self, model: ChatDeltaMem) -> None:
        assert model.invoke(PROMPT, stream=True).content == model.invoke(PROMPT, stream=False).content

    def test_max_tokens_is_another_name(self, engine: DeltaMemEngine, model: ChatDeltaMem) -> None:
        assert usage(model.invoke(PROMPT, max_tokens=3))["output_tokens"] == 3
        assert usage(ChatDeltaMem(engine=engine, max_tokens=4).invoke(PROMPT))["output_tokens"] == 4


def usage(message: BaseMessage) -> dict[str, Any]:
    assert isinstance(message, AIMessage)
    assert message.usage_metadata is not None
    return dict(message.usage_metadata)


class TestMetadata:
    def test_invoke_says_what_it_did(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        reply = model.invoke(PROMPT, session_id="alice")
        info = engine.store.session("alice")
        assert info is not None
        assert reply.response_metadata == {
            "model_name": "LlamaForCausalLM",
            "finish_reason": "length",
            "delta_mem": {"session": "alice", "snapshot": info.head},
        }
        assert usage(reply)["output_tokens"] == 6
        assert usage(reply)["total_tokens"] == usage(reply)["input_tokens"] + 6

    def test_finish_reason_stop(self, model: ChatDeltaMem) -> None:
        first = str(model.invoke(PROMPT).content)[0]
        reply = model.invoke(PROMPT, stop=[first])
        assert (reply.content, reply.response_metadata["finish_reason"]) == ("", "stop")

    @pytest.mark.parametrize("calling", ["stateless", "read", "off"])
    def test_no_handle_where_nothing_was_kept(self, model: ChatDeltaMem, calling: str) -> None:
        keywords: dict[str, Any] = {} if calling == "stateless" else {"session_id": "alice", "memory": calling}
        assert "delta_mem" not in model.invoke(PROMPT, **keywords).response_metadata

    async def test_one_chunk_says_it(self, model: ChatDeltaMem) -> None:
        calls = [
            list(model.stream(PROMPT, session_id="alice")),
            [chunk async for chunk in model.astream(PROMPT, session_id="bob")],
        ]
        for chunks in calls:
            assert [chunk.chunk_position for chunk in chunks] == [None] * (len(chunks) - 1) + ["last"]
            assert [bool(chunk.usage_metadata) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
            assert [bool(chunk.response_metadata) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
            assert len({chunk.id for chunk in chunks}) == 1

    def test_chunks_add_up_to_the_message(self, model: ChatDeltaMem) -> None:
        invoked = model.invoke(PROMPT, session_id="alice")
        added: AIMessageChunk = reduce(add, model.stream(PROMPT, session_id="bob"))
        assert added.usage_metadata == invoked.usage_metadata
        assert added.response_metadata.keys() == invoked.response_metadata.keys()
        assert added.response_metadata["finish_reason"] == "length"
        assert added.response_metadata["delta_mem"]["session"] == "bob"

    def test_callbacks_see_each_token_and_the_end_once(self, model: ChatDeltaMem) -> None:
        tokens, ends = [], []

        class Handler(BaseCallbackHandler):
            def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
                tokens.append(token)

            def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
                ends.append(response)

        chunks = list(model.stream(PROMPT, {"callbacks": [Handler()]}))
        assert tokens == [chunk.content for chunk in chunks]
        assert len(ends) == 1

    def test_v1_content(self, model: ChatDeltaMem) -> None:
        v1 = model.model_copy(update={"output_version": "v1"})
        text = model.invoke(PROMPT).content
        assert v1.invoke(PROMPT).content == [{"type": "text", "text": text}]
        added: AIMessageChunk = reduce(add, v1.stream(PROMPT))
        assert added.text == text


class TestEvents:
    async def test_v2_events(self, model: ChatDeltaMem) -> None:
        config: RunnableConfig = {"configurable": {"session_id": "alice"}}
        events = [event async for event in model.astream_events(PROMPT, config, version="v2")]
        assert [event["event"] for event in (events[0], events[-1])] == ["on_chat_model_start", "on_chat_model_end"]
        output = events[-1]["data"]["output"]
        assert output.response_metadata["delta_mem"]["session"] == "alice"
        streamed = [e["data"]["chunk"].content for e in events if e["event"] == "on_chat_model_stream"]
        assert "".join(streamed) == output.content

    @pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
    async def test_v3_events(self, model: ChatDeltaMem) -> None:
        """They go past `stream` and `invoke`, and must find the session all the same."""
        stream = model.stream_events(PROMPT, {"configurable": {"session_id": "alice"}}, version="v3")
        assert stream.output.response_metadata["delta_mem"]["session"] == "alice"
        streaming = model.with_session("bob").astream_events(PROMPT, version="v3")
        output = await (await streaming).output
        assert output.response_metadata["delta_mem"]["session"] == "bob"
        assert output.text == stream.output.text == model.invoke(PROMPT, session_id="carol").content
        assert output.usage_metadata["output_tokens"] == 6


class TestEventLoop:
    """The loop turns while the model works: another task counts, on the loop, between the first token and the last."""

    async def test_ainvoke_does_not_block(self, model: ChatDeltaMem) -> None:
        assert await self.turns_during(model.ainvoke(PROMPT, max_new_tokens=60)) >= 5

    async def test_astream_does_not_block(self, model: ChatDeltaMem) -> None:
        async def all_of_it() -> None:
            async for _ in model.astream(PROMPT, max_new_tokens=60):
                pass

        assert await self.turns_during(all_of_it()) >= 5

    async def test_loading_does_not_block(self, folders: tuple[str, str]) -> None:
        """The weights load at the first call, on another thread."""
        entered, release = threading.Event(), threading.Event()

        class Slow(ChatDeltaMem):
            def get_engine(self) -> DeltaMemEngine:
                entered.set()
                assert release.wait(20)
                return super().get_engine()

        model = Slow(model=str(folders[0]), adapter=str(folders[1]), store=":memory:", max_new_tokens=2)
        call = asyncio.create_task(model.ainvoke(PROMPT))
        while not entered.is_set():
            await asyncio.sleep(0.005)
        release.set()  # had the loop been blocked, nobody could have said so
        assert (await call).content

    async def turns_during(self, call: Any) -> int:
        task, turns = asyncio.ensure_future(call), 0
        while not task.done():
            await asyncio.sleep(0.005)
            turns += 1
        await task
        return turns

    async def test_calls_at_once_are_each_answered(self, model: ChatDeltaMem) -> None:
        prompts = [f"number {i}" for i in range(4)]
        replies = await asyncio.gather(*(model.ainvoke(prompt) for prompt in prompts))
        assert [reply.content for reply in replies] == [model.invoke(prompt).content for prompt in prompts]
