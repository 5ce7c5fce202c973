"""Many sessions at once on one agent and one LLM; runs that are left or break down: no cross-talk, no half turns."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from typing import Any, cast

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.chat_engine import SimpleChatEngine

from deltamem_agents import DeltaMemEngine, GenerationError, MemoryState
from llama_index_deltamem import DeltaMemLLM, DeltaMemory
from tests.engine.faults import before_forward, breakdown
from tests.llama_index.lines import Said, spoken, user


def near(a: MemoryState, b: MemoryState) -> bool:
    """Equal to float tolerance: batches add in another order."""
    return bool((a.tensor - b.tensor).norm() <= 1e-4 * b.tensor.norm())


def texts(session: str) -> list[str]:
    return [f"I am {session}, and this is my message number {number}." for number in range(3)]


class TestManySessions:
    @pytest.mark.parametrize("kind", [FunctionAgent, ReActAgent])
    async def test_four_on_one_agent(self, kind: Any, engine: DeltaMemEngine, llm: DeltaMemLLM, said: Said) -> None:
        """Each session's state is what it would be alone."""
        agent = kind(llm=llm)

        async def talk(session: str, script: str) -> None:
            memory = DeltaMemory(engine=engine, session_id=session, window=4)
            for text in texts(script):
                await agent.run(text, memory=memory)

        names = [f"user {n}" for n in range(4)]
        await asyncio.gather(*(talk(name, name) for name in names))
        for name in names:
            await talk(f"alone, {name}", name)
            assert said(name) == said(f"alone, {name}")
            assert near(engine.state(name), engine.state(f"alone, {name}"))

    async def test_ten_on_one_llm(self, engine: DeltaMemEngine, llm: DeltaMemLLM, said: Said) -> None:
        async def talk(session: str, script: str) -> list[str]:
            chat = SimpleChatEngine.from_defaults(llm=llm, memory=DeltaMemory(engine=engine, session_id=session))
            return [str(await chat.achat(text)) for text in texts(script)]

        names = [f"user {n}" for n in range(10)]
        together = await asyncio.gather(*(talk(name, name) for name in names))
        for name, replies in zip(names, together, strict=True):
            assert await talk(f"alone, {name}", name) == replies
            assert near(engine.state(name), engine.state(f"alone, {name}"))
            assert [text for role, text in said(name) if role == "user"] == texts(name)

    def test_threads(self, engine: DeltaMemEngine, llm: DeltaMemLLM, said: Said) -> None:
        """Synchronous engines of a web server's workers."""

        async def talk(session: str) -> None:
            chat = SimpleChatEngine.from_defaults(llm=llm, memory=DeltaMemory(engine=engine, session_id=session))
            for text in texts(session):
                await asyncio.to_thread(chat.chat, text)

        async def all_of_them() -> None:
            await asyncio.gather(*(talk(f"user {n}") for n in range(4)))

        asyncio.run(all_of_them())
        for n in range(4):
            assert [text for role, text in said(f"user {n}") if role == "user"] == texts(f"user {n}")


class TestLeaving:
    async def test_a_stream_of_the_llm(self, llm: DeltaMemLLM, alice: DeltaMemory, said: Said) -> None:
        alice.put(user("hello"))
        long = llm.model_copy(update={"max_new_tokens": 2000})
        stream = cast("Generator[Any]", long.stream_chat(alice.get()))
        next(stream)
        stream.close()
        astream = cast("AsyncGenerator[Any]", await long.astream_chat(alice.get()))
        async with aclosing(astream):
            async for _ in astream:
                break
        assert said("alice") == [("user", "hello")]
        assert await asyncio.wait_for(llm.achat(alice.get()), timeout=20)  # nobody generates for the one who has left

    async def test_a_chat_engine_s_stream(
        self, engine: DeltaMemEngine, llm: DeltaMemLLM, alice: DeltaMemory, said: Said
    ) -> None:
        """LlamaIndex drains it by itself; the reply is there whole, and the next turn comes behind it."""
        chat = SimpleChatEngine.from_defaults(llm=llm, memory=alice)
        response = chat.stream_chat("hello")
        next(iter(response.response_gen))
        thread = response.write_response_to_history_thread
        if thread is not None:
            thread.join()
        chat.chat("more")
        assert [role for role, _ in said("alice")] == ["user", "assistant"] * 2

    async def test_a_run_that_is_cancelled(
        self, engine: DeltaMemEngine, llm: DeltaMemLLM, alice: DeltaMemory, said: Said
    ) -> None:
        """The question stays, half a reply doesn't, and the next run goes on."""
        agent = FunctionAgent(llm=llm.model_copy(update={"max_new_tokens": 4000}))
        handler = agent.run("hello", memory=alice)
        async for _ in handler.stream_events():
            if said("alice"):
                break
        await handler.cancel_run()
        with pytest.raises(BaseException):  # noqa: B017, PT011 - the workflow's own, of no concern here
            await handler
        assert said("alice") == [("user", "hello")]
        await FunctionAgent(llm=llm).run("more", memory=alice)
        assert [role for role, _ in said("alice")] == ["user", "user", "assistant"]

    @pytest.mark.parametrize("streaming", [False, True])
    async def test_an_exception_in_the_middle(
        self, engine: DeltaMemEngine, llm: DeltaMemLLM, alice: DeltaMemory, said: Said, streaming: bool
    ) -> None:
        agent = FunctionAgent(llm=llm, streaming=streaming)
        await agent.run("hello", memory=alice)
        before = said("alice")
        with before_forward(engine.model, 4, breakdown), pytest.raises(GenerationError, match="the device is gone"):
            await agent.run("more", memory=alice)
        assert said("alice") == [*before, ("user", "more")]
        reply = await agent.run("again", memory=alice)
        assert said("alice")[-2:] == [("user", "again"), ("assistant", str(reply))]

    async def test_an_exception_in_a_chat_engine_s_stream(
        self, engine: DeltaMemEngine, llm: DeltaMemLLM, alice: DeltaMemory, said: Said
    ) -> None:
        """The reader gets the error, as from core's own memories."""
        chat = SimpleChatEngine.from_defaults(llm=llm, memory=alice)
        with before_forward(engine.model, 4, breakdown):
            response = await chat.astream_chat("hello")
            with pytest.raises(GenerationError, match="the device is gone"):
                async for _ in response.async_response_gen():
                    pass
        assert said("alice") == [("user", "hello")]
        assert str(await chat.achat("more"))

    async def test_a_put_that_is_cancelled_is_all_or_nothing(self, alice: DeltaMemory, said: Said) -> None:
        for number in range(5):
            task = asyncio.create_task(alice.aput_messages([user(f"{number} a"), user(f"{number} b")]))
            await asyncio.sleep(0.002 * number)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await alice.aput(user("end"))
        texts = [text for _, text in said("alice")]
        for number in range(5):
            assert (f"{number} a" in texts) == (f"{number} b" in texts)
        assert len(set(texts)) == len(texts)
        assert spoken(alice.get())[-1] == ("user", "end")
