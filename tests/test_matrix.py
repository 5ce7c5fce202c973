"""Every feature on every kind of chat template: one that takes anything, and those that refuse what is added."""

import copy
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, trim_messages
from langchain_core.tools import tool
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from deltamem_agents import DeltaMemEngine, Message
from langchain_deltamem import ChatDeltaMem
from llama_index_deltamem import DeltaMemLLM, DeltaMemory
from tests.chat import byte_tokenizer, chat_model

SHOW = (
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}<|im_start|>system\n{{ messages[0]['content'] }}<|im_end|>\n"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}"
)
TEMPLATES = {
    "free": "{% for m in messages %}" + SHOW,
    "no system role": "{% for m in messages %}" + NO_SYSTEM + SHOW,
    "alternating": SYSTEM_FIRST + ALTERNATE + SHOW,
    "both": "{% for m in messages %}" + NO_SYSTEM + ALTERNATE + SHOW,
}
WRITTEN = ("user",)


class Person(BaseModel):
    """Somebody."""

    name: str
    adult: bool


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@cache
def strict(name: str) -> PreTrainedTokenizerBase:
    tokens = copy.deepcopy(byte_tokenizer())
    tokens.chat_template = TEMPLATES[name]
    return tokens


@pytest.fixture(params=TEMPLATES)
def engine(request: pytest.FixtureRequest) -> Iterator[DeltaMemEngine]:
    with DeltaMemEngine(chat_model(absorb_roles=WRITTEN), strict(request.param), store=":memory:") as opened:
        yield opened


def user(text: str) -> Message:
    return Message(role="user", content=text)


def ledger(engine: DeltaMemEngine, session: str = "alice") -> list[tuple[str, str]]:
    """Who said what, as the session has it: nothing lost, doubled, or in somebody else's name."""
    head = engine.session(session).info.head
    entries = [entry for turn in engine.store.line(head or "") for entry in turn.entries]
    return [(entry.role, Message.model_validate_json(entry.text or "").content) for entry in entries]


def chat(engine: DeltaMemEngine, **options: object) -> ChatDeltaMem:
    return ChatDeltaMem(engine=engine, session_id="alice", **{"max_new_tokens": 4, **options})


def system_prompt(engine: DeltaMemEngine) -> None:
    reply = chat(engine).invoke([SystemMessage("Be brief."), HumanMessage("the cat")])
    chat(engine).invoke([SystemMessage("Be brief."), HumanMessage("the cat"), reply, HumanMessage("so")])
    said = ledger(engine)
    assert [role for role, _ in said] == ["user", "assistant"] * 2
    assert [text for role, text in said if role == "user"] == ["the cat", "so"]


def tools(engine: DeltaMemEngine) -> None:
    model = chat(engine, max_new_tokens=200)
    forced = model.bind_tools([add], tool_choice="add").invoke("1 + 2?")
    assert [call["name"] for call in forced.tool_calls] == ["add"]
    agent = create_agent(model.with_session("bob"), tools=[add], system_prompt="Be brief.")
    agent.invoke({"messages": [HumanMessage("the cat")]})
    assert ledger(engine, "bob")[0] == ("user", "the cat")


def structured(method: str) -> Callable[[DeltaMemEngine], None]:
    def ask(engine: DeltaMemEngine) -> None:
        model = chat(engine, max_new_tokens=200).with_structured_output(Person, method=method, include_raw=True)
        found = model.invoke("Who is it?")
        assert isinstance(found["parsed"], Person), found
        assert ledger(engine)[0] == ("user", "Who is it?")

    return ask


def absorb_twice(engine: DeltaMemEngine) -> None:
    engine.absorb([user("the cat")], session="alice")
    engine.absorb([user("the user")], session="alice")
    for recent in (8, 0):
        engine.generate([user("so")], session="alice", recent_messages=recent, max_new_tokens=4)
    assert [text for role, text in ledger(engine) if role == "user"] == ["the cat", "the user", "so", "so"]


def window_that_begins_with_the_assistant(engine: DeltaMemEngine) -> None:
    engine.absorb([user("the cat")], session="alice")
    engine.generate([Message(role="assistant", content="as is"), user("so")], session="alice", max_new_tokens=4)
    for text in ("an", "us", "use"):
        engine.generate([user(text)], session="alice", recent_messages=1, max_new_tokens=4)
    engine.generate([Message(role="assistant", content="as is"), user("so")], max_new_tokens=4)
    assert [text for role, text in ledger(engine) if role == "user"] == ["the cat", "so", "an", "us", "use"]


def summary(engine: DeltaMemEngine) -> None:
    told = HumanMessage("Here is a summary.", additional_kwargs={"lc_source": "summarization"})
    reply = chat(engine).invoke([told, HumanMessage("the cat")])
    chat(engine).invoke([told, HumanMessage("the cat"), reply, HumanMessage("so")])
    assert [text for role, text in ledger(engine) if role == "user"] == ["the cat", "so"]


def simple_chat_engine(engine: DeltaMemEngine) -> None:
    llm = DeltaMemLLM(engine=engine, max_new_tokens=4)
    memory = DeltaMemory.from_defaults(session_id="alice", engine=engine)
    talk = SimpleChatEngine.from_defaults(llm=llm, memory=memory, system_prompt="Be brief.")
    for text in ("the cat", "so"):
        talk.chat(text)
    assert [text for role, text in ledger(engine) if role == "user"] == ["the cat", "so"]
    llm.chat([ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="hi")])


def trimming(engine: DeltaMemEngine) -> None:
    model = chat(engine)
    said = [HumanMessage("the cat"), AIMessage("as is"), HumanMessage("so"), AIMessage("an"), HumanMessage("us")]
    for limit in (20, 40, 60, 500):
        kept = trim_messages([SystemMessage("Be."), *said], max_tokens=limit, token_counter=model, include_system=True)
        assert model.get_num_tokens_from_messages(kept or said[-1:]) <= max(limit, 40)


def counting(engine: DeltaMemEngine) -> None:
    said = [Message(role="system", content="Be."), user("hi"), Message(role="assistant", content="ho"), user("so")]
    for start in range(len(said)):
        for stop in range(start + 1, len(said) + 1):
            counted = engine.count_tokens(said[start:stop])
            assert counted == engine.generate(said[start:stop], max_new_tokens=1).usage.prompt_tokens


FEATURES = {
    "system prompt": system_prompt,
    "tools": tools,
    "structured: function_calling": structured("function_calling"),
    "structured: json_schema": structured("json_schema"),
    "structured: json_mode": structured("json_mode"),
    "absorb twice": absorb_twice,
    "window that begins with the assistant": window_that_begins_with_the_assistant,
    "summary": summary,
    "SimpleChatEngine": simple_chat_engine,
    "trim_messages": trimming,
    "counting": counting,
}


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_on_every_kind_of_template(feature: str, engine: DeltaMemEngine) -> None:
    FEATURES[feature](engine)
