"""In each of LlamaIndex's runners each message is in the session once: on its ledger, and in the state."""

from typing import cast

import pytest
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.react.types import BaseReasoningStep
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent

from deltamem_agents import DeltaMemEngine, Message
from llama_index_deltamem import DeltaMemLLM, DeltaMemory
from tests.engine.ledger import WrittenTokens
from tests.engine.reference import encode
from tests.llama_index.lines import Said
from tests.llama_index.runners import RUNS, Mode, runner, tell_time
from tests.llama_index.steering import HandoffLLM, ReActLLM

TEXTS = ["My dog is called Rex.", "hi", "hi"]


def written(message: Message) -> list[int]:
    """The tokens of a message that are written."""
    if message.role not in ("user", "tool"):
        return []
    answers = message.tool_call_id is not None
    content = f"<tool_response>\n{message.content}\n</tool_response>" if answers else message.content
    return encode(f"<|im_start|>{message.role}\n{content}<|im_end|>\n")


def check_state(engine: DeltaMemEngine, tokens: WrittenTokens, session: str) -> None:
    """What was written into the state, token by token, is what is on the ledger, once."""
    head = engine.session(session).info.head
    assert head is not None
    entries = [entry for turn in engine.store.line(head) for entry in turn.entries]
    messages = [Message.model_validate_json(cast("str", entry.text)) for entry in entries]
    assert tokens.behind(engine.state(session)) == [token for message in messages for token in written(message)]


@pytest.mark.parametrize(("name", "mode"), RUNS)
async def test_each_message_is_there_once(
    name: str, mode: Mode, engine: DeltaMemEngine, llm: DeltaMemLLM, alice: DeltaMemory, said: Said
) -> None:
    """Whatever a runner calls the LLM for: condensing, refining, handing off, calling tools."""
    if name == "workflow":
        llm = HandoffLLM(engine=engine, max_new_tokens=6)
    say = runner(name, mode, llm, alice)
    heard = []
    with WrittenTokens(engine.model) as tokens:
        for text in TEXTS:
            heard.append((text, await say(text)))
    line = said("alice")
    asked = [content for role, content in line if role == "user"]
    assert asked == TEXTS
    finals = [line[n - 1] for n in range(1, len(line) + 1) if n == len(line) or line[n][0] == "user"]
    for (role, content), (_, reply) in zip(finals, heard, strict=True):
        assert role == "assistant"
        assert reply.strip() in content
        assert reply
    steps = ["assistant", "tool", "assistant"] if name == "workflow" else ["assistant"]
    assert [role for role, _ in line] == ["user", *steps] * len(TEXTS)
    check_state(engine, tokens, "alice")


@pytest.mark.parametrize("mode", ["async", "astream"])
async def test_tools(mode: Mode, engine: DeltaMemEngine, llm: DeltaMemLLM, alice: DeltaMemory, said: Said) -> None:
    """Calls and answers are on the ledger, together and in their order."""
    able = llm.model_copy(update={"max_new_tokens": 100})
    say = runner("function", mode, able, alice, initial_tool_choice="tell_time")
    with WrittenTokens(engine.model) as tokens:
        for text in TEXTS:
            await say(text)
    assert [role for role, _ in said("alice")] == ["user", "assistant", "tool", "assistant"] * 3
    assert {content for role, content in said("alice") if role == "tool"} <= {tell_time("UTC"), tell_time("CET")}
    messages = alice.get_all()
    assert messages[2].additional_kwargs["tool_call_id"] == messages[1].blocks[-1].tool_call_id  # type: ignore[union-attr]
    check_state(engine, tokens, "alice")


async def test_a_state_prompt_is_not_what_was_said(llm: DeltaMemLLM, alice: DeltaMemory, said: Said) -> None:
    """Agents rewrite the user's message in place, before the LLM gets it; the memory has what was put."""
    agent = FunctionAgent(llm=llm, initial_state={"mood": "good"}, state_prompt="State: {state}. {msg}")
    for text in TEXTS:
        await agent.run(text, memory=alice)
    assert [content for role, content in said("alice") if role == "user"] == TEXTS


async def test_a_run_that_gives_up_keeps_the_question(llm: DeltaMemLLM, alice: DeltaMemory, said: Said) -> None:
    """The next run goes on behind it."""
    able = llm.model_copy(update={"max_new_tokens": 100})
    agent = FunctionAgent(llm=able, tools=[tell_time], initial_tool_choice="tell_time")
    with pytest.raises(Exception, match="Max iterations"):
        await agent.run("one", memory=alice, max_iterations=1)
    assert said("alice") == [("user", "one")]
    await agent.run("two", memory=alice)
    assert [role for role, _ in said("alice")] == ["user", "user", "assistant", "tool", "assistant"]


async def test_early_stopping(llm: DeltaMemLLM, alice: DeltaMemory, said: Said) -> None:
    able = llm.model_copy(update={"max_new_tokens": 100})
    agent = FunctionAgent(llm=able, tools=[tell_time], initial_tool_choice="tell_time")
    reply = await agent.run("one", memory=alice, max_iterations=1, early_stopping_method="generate")
    assert said("alice") == [("user", "one"), ("assistant", str(reply))]


@pytest.mark.parametrize("mode", ["async", "astream"])
async def test_a_react_agent_s_steps_are_one_message(
    mode: Mode, engine: DeltaMemEngine, alice: DeltaMemory, said: Said
) -> None:
    """Thoughts, actions and observations are stored as one reply, as the agent puts them; the calls leave nothing."""
    say = runner("react", mode, ReActLLM(engine=engine), alice)
    with WrittenTokens(engine.model) as tokens:
        replies = [await say(text) for text in TEXTS]
    line = said("alice")
    assert [role for role, _ in line] == ["user", "assistant"] * len(TEXTS)
    for (_, content), reply in zip(line[1::2], replies, strict=True):
        assert content.count("Action:") == content.count("Observation:") == 1
        assert content.endswith(f"Answer: {reply}")
    check_state(engine, tokens, "alice")


async def test_a_react_agent_s_retries_leave_nothing(
    engine: DeltaMemEngine, llm: DeltaMemLLM, alice: DeltaMemory, said: Said
) -> None:
    """A reply that cannot be parsed is asked for again, with the question repeated: all of that stays out."""
    broken = ReActOutputParser()
    tries = iter(range(100))

    class Fussy(ReActOutputParser):
        def parse(self, output: str, is_streaming: bool = False) -> BaseReasoningStep:
            if next(tries) < 2:
                raise ValueError("no thought, no action")
            return broken.parse(output, is_streaming=is_streaming)

    reply = await ReActAgent(llm=llm, tools=[tell_time], output_parser=Fussy()).run("hello", memory=alice)
    assert next(tries) == 3
    assert [role for role, _ in said("alice")] == ["user", "assistant"]
    assert said("alice")[1][1].endswith(str(reply))
