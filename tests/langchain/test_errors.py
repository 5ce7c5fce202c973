"""What cannot be served is refused in words that LangChain's users know, and changes no session."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import langchain_core.exceptions
import pytest
from langchain.agents.middleware._retry import default_retry_on
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

import deltamem_agents
from deltamem_agents import (
    AdapterError,
    BackboneError,
    ConfigError,
    DeltaMemEngine,
    GenerationError,
    Message,
    MessageError,
    SessionError,
    UnsupportedArchitectureError,
)
from langchain_deltamem import ChatDeltaMem
from langchain_deltamem.messages import to_engine

IMPOSSIBLE: dict[str, Any] = {"type": "string", "minLength": 3, "maxLength": 1}
IMAGE: Any = [{"type": "text", "text": "What is this?"}, {"type": "image", "url": "https://example.org/dog.png"}]


@pytest.fixture(params=["invoke", "stream", "ainvoke", "astream"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Each way to call a model, to its end."""

    async def run(model: Any, messages: Any, **kwargs: Any) -> object:
        if request.param == "ainvoke":
            return await model.ainvoke(messages, **kwargs)
        if request.param == "astream":
            return [chunk async for chunk in model.astream(messages, **kwargs)]
        return list(model.stream(messages, **kwargs)) if request.param == "stream" else model.invoke(messages, **kwargs)

    return run


class TestCalls:
    @pytest.mark.parametrize(
        "error", [langchain_core.exceptions.ContextOverflowError, deltamem_agents.ContextOverflowError]
    )
    async def test_too_long(self, model: ChatDeltaMem, call: Callable[..., Any], error: type[Exception]) -> None:
        """Both names catch it: LangChain's middlewares look for theirs, the engine's users for its own."""
        with pytest.raises(error, match="4096"):
            await call(model, "x" * 5000)

    async def test_unknown_options(self, model: ChatDeltaMem, call: Callable[..., Any]) -> None:
        with pytest.raises(GenerationError, match=r"temprature.*known are max_new_tokens, temperature"):
            await call(model, "hello", temprature=1)

    async def test_a_session_by_the_engine_s_name(self, model: ChatDeltaMem, call: Callable[..., Any]) -> None:
        with pytest.raises(SessionError, match="session_id=…"):
            await call(model, "hello", session="alice")

    async def test_both_names_of_one_option(self, model: ChatDeltaMem, call: Callable[..., Any]) -> None:
        with pytest.raises(GenerationError, match="max_tokens"):
            await call(model, "hello", max_tokens=2, max_new_tokens=3)

    async def test_no_messages(self, model: ChatDeltaMem, call: Callable[..., Any]) -> None:
        with pytest.raises(MessageError, match="messages is empty"):
            await call(model, [])

    async def test_the_last_word_need_not_be_the_human_s(self, model: ChatDeltaMem, call: Callable[..., Any]) -> None:
        """Agents that are nodes of one graph go on from each other's replies, or from a prompt alone."""
        for messages in ([SystemMessage("Be kind.")], [HumanMessage("hello"), AIMessage("hi")]):
            assert await call(model, messages)

    async def test_no_unicode(self, model: ChatDeltaMem, call: Callable[..., Any]) -> None:
        with pytest.raises(MessageError, match="message 0 is not valid"):
            await call(model, "\ud800")

    async def test_an_answer_without_its_call(self, model: ChatDeltaMem, call: Callable[..., Any]) -> None:
        """Where there is no session that might hold it."""
        call_ = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])
        history = [HumanMessage("hello"), call_, ToolMessage("done", tool_call_id="1")]
        await call(model, history)
        with pytest.raises(MessageError, match=r"message 2 is a tool's answer with tool_call_id='2'.*\(calls: 1\)"):
            await call(model, [*history[:2], ToolMessage("done", tool_call_id="2")])
        with pytest.raises(MessageError, match=r"message 0 is a tool's answer"):
            await call(model, history[2:], session_id="alice", memory="off")
        await call(model, history[2:], session_id="alice")

    @pytest.mark.parametrize(
        "keywords",
        [
            {"temprature": 1},
            {"temperature": -1},
            {"session": "alice"},
            {"session_id": " alice"},
            {"tools": [{"name": "f"}], "tool_choice": "g"},
            {"tools": "f"},
            {"response_format": {"type": "json_schema"}},
            {"response_format": {"type": "yaml"}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": IMPOSSIBLE}}},
            {"tools": [{"name": "f", "parameters": {"properties": {"a": IMPOSSIBLE}, "required": ["a"]}}]},
            {"response_format": {"type": "regex", "regex": "("}},
            {"recent_messages": -1},
        ],
        ids=str,
    )
    async def test_langchain_knows_an_invalid_request(
        self, model: ChatDeltaMem, call: Callable[..., Any], keywords: dict[str, Any]
    ) -> None:
        """Its retries leave such calls alone."""
        with pytest.raises(langchain_core.exceptions.ModelInvalidRequestError) as caught:
            await call(model, "hello", **keywords)
        assert isinstance(caught.value, deltamem_agents.DeltaMemError)
        assert not caught.value.is_retryable

    @pytest.mark.parametrize(
        "messages",
        [[HumanMessage(IMAGE)], [ToolMessage("done", tool_call_id="1")], []],
        ids=["an image", "an answer without its call", "none"],
    )
    async def test_langchain_knows_invalid_messages(
        self, model: ChatDeltaMem, call: Callable[..., Any], messages: list[BaseMessage]
    ) -> None:
        with pytest.raises(langchain_core.exceptions.ModelInvalidRequestError) as caught:
            await call(model, messages)
        assert isinstance(caught.value, MessageError)

    async def test_a_model_that_is_not_there(self, call: Callable[..., Any], folders: tuple[Path, Path]) -> None:
        with pytest.raises(langchain_core.exceptions.ModelNotFoundError) as caught:
            await call(ChatDeltaMem(model=str(folders[0] / "none"), adapter=str(folders[1])), "hello")
        assert isinstance(caught.value, BackboneError)

    async def test_another_model_needs_an_adapter(self, model: ChatDeltaMem, call: Callable[..., Any]) -> None:
        with pytest.raises(AdapterError, match=r"no adapter ships for some/model: .*Name an adapter.*adapter=…"):
            await call(model.bind(model="some/model"), "hello")

    async def test_what_trying_again_cannot_help(
        self, engine: DeltaMemEngine, call: Callable[..., Any], folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        """LangChain's middleware tries everything again that doesn't say so."""
        closed = ChatDeltaMem(engine=engine)
        engine.close()
        headless = shutil.copytree(folders[0], tmp_path / "model")
        (headless / "config.json").write_text('{"model_type": "vit"}')
        other = shutil.copytree(folders[1], tmp_path / "adapter")
        for file in other.iterdir():
            file.write_bytes(b"{")
        model, adapter = map(str, folders)
        for broken, kind in (
            (ChatDeltaMem(model=str(headless), adapter=adapter), UnsupportedArchitectureError),
            (ChatDeltaMem(model=model, adapter=str(other)), AdapterError),
            (ChatDeltaMem(model=model, adapter=str(tmp_path / "none")), AdapterError),
            (ChatDeltaMem(model="some/model"), AdapterError),
            (closed, ConfigError),
        ):
            with pytest.raises(kind) as caught:
                await call(broken, "hello")
            assert not default_retry_on(caught.value), caught.value
        with pytest.raises(ConfigError, match=r"this engine is closed: make the chat model with an open one"):
            await call(closed, "hello")

    async def test_a_bad_message_leaves_the_session(
        self, model: ChatDeltaMem, engine: DeltaMemEngine, call: Callable[..., Any]
    ) -> None:
        with pytest.raises(MessageError, match="'image'"):
            await call(model, [HumanMessage("hello"), HumanMessage(IMAGE)], session_id="alice")
        assert engine.sessions() == []


class TestMessages:
    def test_what_a_text_model_takes(self) -> None:
        messages: list[BaseMessage] = [
            SystemMessage("Be kind."),
            HumanMessage(["one", {"type": "text", "text": "two"}], id="h"),
            AIMessage([{"type": "text", "text": "three", "index": 0}], id="lc_run--1"),
            AIMessage([], id="a"),
            ToolMessage("four", tool_call_id="t", id="m"),
        ]
        assert to_engine(messages) == [
            Message(role="system", content="Be kind."),
            Message(role="user", content="one\ntwo", id="h"),
            Message(role="assistant", content="three", id="lc_run--1"),
            Message(role="assistant", content="", id="a"),
            Message(role="tool", content="four", id="m", tool_call_id="t"),
        ]

    @pytest.mark.parametrize(
        ("message", "found"),
        [
            (
                FunctionMessage(content="x", name="f"),
                "message 1 is a FunctionMessage: expected a human, AI, system or tool",
            ),
            (ChatMessage(content="x", role="narrator"), "message 1 is a ChatMessage"),
            (RemoveMessage(id="x"), "message 1 is a RemoveMessage"),
            (HumanMessage(IMAGE), "message 1 holds a block of type 'image': this is a text model"),
            (
                AIMessage([{"type": "tool_use", "id": "1", "name": "f", "input": {}}]),
                r"message 1 holds a tool call, id '1', .* not among its tool_calls \(none\)",
            ),
            (HumanMessage([{"type": "text"}]), "message 1 holds a block of type 'text' whose text is None"),
            (ToolMessage([{"type": "text", "text": None}], tool_call_id="1"), "'text' whose text is None"),
            (ToolMessage(IMAGE, tool_call_id="1"), "message 1 holds a block of type 'image'"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseMessage) else "",
    )
    def test_what_it_does_not(self, message: BaseMessage, found: str) -> None:
        with pytest.raises(MessageError, match=found):
            to_engine([HumanMessage("hello"), message])

    @pytest.mark.parametrize(
        "block",
        [
            {"type": "server_tool_call", "id": "1", "name": "web_search", "args": {"query": "dogs"}},
            {"type": "server_tool_result", "tool_call_id": "1", "status": "success", "output": ["dogs"]},
            {"type": "web_search_call", "id": "1", "status": "completed"},
            {"type": "server_tool_use", "id": "1", "name": "web_search", "input": {}},
            {"type": "non_standard", "value": {"type": "container_upload"}},
            {"type": "image", "base64": "aGk=", "mime_type": "image/png"},
            {"type": "text"},
            {"type": "text", "text": None},
            {},
        ],
        ids=str,
    )
    def test_what_another_model_did_is_passed_over_and_what_it_said_kept(self, block: Any) -> None:
        history = [HumanMessage("Dogs?"), AIMessage(["Let me see.", block, {"type": "text", "text": "Good ones."}])]
        assert [m.content for m in to_engine([*history, HumanMessage("Why?")])] == [
            "Dogs?",
            "Let me see.\nGood ones.",
            "Why?",
        ]

    def test_a_refusal_was_said(self) -> None:
        (converted,) = to_engine([AIMessage([{"type": "refusal", "refusal": "No."}])])
        assert converted.content == "No."

    def test_images_that_were_replied_to_leave_their_words(self) -> None:
        """A thread that another model began goes on; what is asked now must be read."""
        history = [HumanMessage(IMAGE), AIMessage("A dog.")]
        assert [m.content for m in to_engine([*history, HumanMessage("Sure?")])] == ["What is this?", "A dog.", "Sure?"]
        with pytest.raises(MessageError, match="message 2 holds a block of type 'image'"):
            to_engine([*history, HumanMessage(IMAGE)])

    @pytest.mark.parametrize("handle", ["text", {}, {"session": "alice"}, None])
    def test_a_strange_handle_is_none(self, handle: object) -> None:
        message = AIMessage("x", id="m", response_metadata={"delta_mem": handle})
        (converted,) = to_engine([message])
        assert (converted.id, converted.snapshot) == ("m", None)

    def test_a_handle_comes_along_whatever_session_made_it(self) -> None:
        """The engine refuses those of others; a fork has its parent's."""
        message = AIMessage("x", id="m", response_metadata={"delta_mem": {"session": "alice", "snapshot": "s"}})
        (converted,) = to_engine([message])
        assert (converted.id, converted.snapshot) == ("m", "s")

    def test_what_another_model_thought_is_left_out(self) -> None:
        message = AIMessage([{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "Yes."}])
        assert to_engine([message])[0].content == "Yes."


@pytest.mark.parametrize(
    ("package", "gone", "extra"),
    [
        ("langchain_deltamem", "langchain_core", "langchain"),
        ("langchain_deltamem", "langgraph", "langchain"),
        ("llama_index_deltamem", "llama_index", "llama-index"),
    ],
)
def test_without_the_framework_the_extra_is_named(package: str, gone: str, extra: str) -> None:
    code = f"import sys; sys.modules['{gone}'] = None; import {package}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stderr.splitlines()[-1].endswith(f"pip install 'deltamem-agents[{extra}]'"), ran.stderr
