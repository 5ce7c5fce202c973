"""The model as an object: what it accepts, how it is copied, pickled, traced, and shares its engine."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.load import dumpd, dumps
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages
from pydantic import BaseModel, ValidationError

from deltamem_agents import DeltaMemEngine, GenerationError, MemoryStore, bundled_is_cached
from langchain_deltamem import ChatDeltaMem
from tests.langchain.conftest import CONTEXT


def double(number: int) -> int:
    """Doubles a number."""
    return 2 * number


@pytest.fixture
def named(folders: tuple[Path, Path]) -> ChatDeltaMem:
    """A model that loads its engine itself, at the first call."""
    return ChatDeltaMem(model=str(folders[0]), adapter=str(folders[1]), store=":memory:", max_new_tokens=2)


class TestConstructor:
    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(ValidationError, match="temprature"):
            ChatDeltaMem(temprature=0.5)  # type: ignore[call-arg]

    @pytest.mark.parametrize("options", [{"temperature": -1}, {"max_new_tokens": 0}, {"top_p": 2.0}, {"stop": [""]}])
    def test_impossible_settings_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(GenerationError, match=next(iter(options))):
            ChatDeltaMem(**options)

    def test_a_window_is_no_less_than_nothing(self) -> None:
        with pytest.raises(ValidationError, match="recent_messages"):
            ChatDeltaMem(recent_messages=-1)

    def test_two_names_for_one_setting_are_refused(self) -> None:
        with pytest.raises(ValidationError, match="max_tokens"):
            ChatDeltaMem(max_new_tokens=1, max_tokens=2)  # type: ignore[call-arg]

    def test_bad_memory_mode(self) -> None:
        with pytest.raises(ValidationError, match="read_write"):
            ChatDeltaMem(memory="write")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "other",
        [{"model": "x"}, {"adapter": "x"}, {"store": ":memory:"}, {"dtype": "float32"}, {"model_kwargs": {"token": 1}}],
    )
    def test_an_engine_is_all(self, engine: DeltaMemEngine, other: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match=f"engine is given, so {next(iter(other))} would go unused"):
            ChatDeltaMem(engine=engine, **other)

    def test_parameters_for_remote_services_warn(self) -> None:
        with pytest.warns(UserWarning, match="api_key, timeout: for remote services, without effect"):
            ChatDeltaMem(timeout=3, api_key="x")  # type: ignore[call-arg]

    def test_nothing_is_loaded(self) -> None:
        ChatDeltaMem(model="no/such-model", session_id="alice")


class TestEngines:
    def test_the_same_arguments_share_one(self, named: ChatDeltaMem, folders: tuple[Path, Path]) -> None:
        other = ChatDeltaMem(model=str(folders[0]), adapter=str(folders[1]), store=":memory:", session_id="bob")
        assert named.get_engine() is other.get_engine()

    def test_other_stores_are_other_engines(self, named: ChatDeltaMem, tmp_path: Path) -> None:
        there = named.model_copy(update={"store": tmp_path / "memory.db"})
        same = named.model_copy(update={"store": str(tmp_path / "memory.db")})
        assert there.get_engine() is same.get_engine() is not named.get_engine()
        there.get_engine().close()

    def test_a_closed_one_makes_way(self, named: ChatDeltaMem, tmp_path: Path) -> None:
        there = named.model_copy(update={"store": tmp_path / "memory.db"})
        with there.get_engine() as first:
            there.invoke("hello", session_id="alice")
        assert there.get_engine() is not first
        assert [info.messages for info in there.get_engine().sessions()] == [2]
        there.get_engine().close()

    def test_a_relative_path_is_meant_from_where_the_model_is_made(
        self, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folders[0].parent)
        model = ChatDeltaMem(model=folders[0].name, adapter=folders[1].name, store=tmp_path.name + ".db")
        monkeypatch.chdir(tmp_path)
        with model.get_engine():
            assert (folders[0].parent / f"{tmp_path.name}.db").exists()

    def test_options_of_transformers(self, named: ChatDeltaMem) -> None:
        eager = ChatDeltaMem(
            model=named.model,
            adapter=named.adapter,
            store=":memory:",
            model_kwargs={"attn_implementation": "eager", "token": "secret"},
        )
        assert "secret" not in f"{eager!r}{dumps(eager)}{eager.model_dump()}"
        with eager.get_engine() as engine:
            assert engine is not named.get_engine()
            assert engine.model.backbone.config._attn_implementation == "eager"

    def test_it_remembers_over_models(self, named: ChatDeltaMem) -> None:
        named.with_session("carol").invoke("hello")
        info = named.model_copy().get_engine().store.session("carol")
        assert info is not None
        assert info.messages == 2

    @pytest.mark.slow
    @pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model has not been fetched")
    def test_the_readme_s_example(self) -> None:
        model = ChatDeltaMem(session_id="alice", store=":memory:")
        model.invoke("My dog is called Rex.")
        assert "delta_mem" in model.invoke("What is my dog called?").response_metadata


class TestCopies:
    def test_shallow_and_deep_copies_share_the_engine(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        for copied in (model.model_copy(), model.model_copy(deep=True), copy.copy(model), copy.deepcopy(model)):
            assert copied.engine is engine
            assert copied.invoke("hello").content == model.invoke("hello").content

    def test_as_a_field(self, model: ChatDeltaMem) -> None:
        class Settings(BaseModel):
            chat: ChatDeltaMem

        assert Settings(chat=model).chat.engine is model.engine

    def test_a_deep_copy_has_its_own_settings(self, engine: DeltaMemEngine) -> None:
        model = ChatDeltaMem(engine=engine, stop=["a"])
        copied = copy.deepcopy([model])[0]
        assert copied.stop is not model.stop
        assert copied.engine is engine

    def test_pickles_hold_settings(self, named: ChatDeltaMem) -> None:
        named.invoke("hello")
        data = pickle.dumps(named.with_session("alice"))
        assert len(data) < 10_000
        loaded = pickle.loads(data)
        assert loaded.session_id == "alice"
        assert loaded.get_engine() is named.get_engine()

    def test_an_engine_cannot_be_pickled(self, model: ChatDeltaMem) -> None:
        for unpicklable in (model, ChatDeltaMem(store=MemoryStore())):
            with pytest.raises(TypeError, match=r"cannot be pickled: .* name model, adapter and a"):
                pickle.dumps(unpicklable)

    def test_serialised_without_weights_or_secrets(self, model: ChatDeltaMem) -> None:
        model.invoke("hello")
        assert len(dumps(model)) < 2000
        text = str(dumpd(ChatDeltaMem(store="postgresql://me:password@host/db", session_id="alice")))
        assert "alice" in text
        assert "password" not in text


class TestTracing:
    def test_invocation_parameters(self, engine: DeltaMemEngine) -> None:
        started: list[dict[str, Any]] = []

        class Handler(BaseCallbackHandler):
            def on_chat_model_start(self, serialized: dict[str, Any], messages: Any, **kwargs: Any) -> None:
                started.append(kwargs)

        model = ChatDeltaMem(engine=engine, max_new_tokens=6, temperature=0.5, stop=["\n"], session_id="alice")
        model.invoke("hello", {"callbacks": [Handler()]}, max_tokens=3)
        list(model.stream("hello", {"callbacks": [Handler()]}))
        invoked, streamed = (kwargs["invocation_params"] for kwargs in started)
        assert invoked == {
            "model": "LlamaForCausalLM",
            "adapter": None,
            "max_new_tokens": 6,
            "temperature": 0.5,
            "top_p": None,
            "top_k": None,
            "repetition_penalty": None,
            "seed": None,
            "_type": "deltamem",
            "stop": ["\n"],
            "session_id": "alice",
            "memory": "read_write",
            "thread": None,
            "max_tokens": 3,
        }
        assert streamed == {k: v for k, v in invoked.items() if k != "max_tokens"}
        metadata = started[0]["metadata"]
        assert {k: v for k, v in metadata.items() if k.startswith("ls_")} == {
            "ls_provider": "deltamem",
            "ls_model_name": "LlamaForCausalLM",
            "ls_model_type": "chat",
            "ls_temperature": 0.5,
            "ls_max_tokens": 3,
            "ls_stop": ["\n"],
            "ls_integration": "langchain_chat_model",
        }

    def test_the_name_is_that_of_the_model_asked_for(self) -> None:
        assert ChatDeltaMem(model="owner/name")._get_ls_params()["ls_model_name"] == "owner/name"


class TestCache:
    @pytest.fixture(autouse=True)
    def _global_cache(self) -> Any:
        set_llm_cache(InMemoryCache())
        yield
        set_llm_cache(None)

    def test_off_by_default(self, model: ChatDeltaMem, engine: DeltaMemEngine) -> None:
        for _ in range(2):
            model.invoke("hello", session_id="alice")
        info = engine.store.session("alice")
        assert info is not None
        assert info.turns == 2

    def test_on_when_asked_for(self, engine: DeltaMemEngine) -> None:
        model = ChatDeltaMem(engine=engine, max_new_tokens=4, temperature=1.0, cache=True)
        assert model.invoke("hello").content == model.invoke("hello").content


class TestTokens:
    """By the model's own tokenizer (a token a byte here), not by a downloaded GPT-2."""

    def test_counting(self, model: ChatDeltaMem) -> None:
        assert model.get_num_tokens("dög") == 4
        assert model.get_num_tokens_from_messages([]) == 0

    @pytest.mark.parametrize("tools", [None, [double]])
    def test_messages_are_counted_as_the_prompt_shows_them(self, model: ChatDeltaMem, tools: Any) -> None:
        messages = [
            SystemMessage("Be kind."),
            HumanMessage("hi"),
            AIMessage("", tool_calls=[{"name": "double", "args": {"number": 1}, "id": "1"}]),
            ToolMessage("2", tool_call_id="1"),
        ]
        reply = (model.bind_tools(tools) if tools else model).invoke(messages)
        assert isinstance(reply, AIMessage)
        assert reply.usage_metadata is not None
        assert model.get_num_tokens_from_messages(messages, tools) == reply.usage_metadata["input_tokens"]

    def test_trimming_by_tokens(self, model: ChatDeltaMem) -> None:
        messages = [HumanMessage("one"), AIMessage("two"), HumanMessage("three")]
        limit = model.get_num_tokens_from_messages(messages) - 1
        trimmed = trim_messages(messages, max_tokens=limit, token_counter=model, strategy="last", start_on="human")
        assert trimmed == messages[2:]

    def test_a_counter_of_one_s_own(self, engine: DeltaMemEngine) -> None:
        model = ChatDeltaMem(engine=engine, custom_get_token_ids=lambda text: [0])
        assert model.get_num_tokens("hello") == 1
        assert model.get_num_tokens_from_messages([HumanMessage("hi"), AIMessage("ho")]) == 2


class TestProfile:
    def test_it_says_what_the_model_can_do(self, model: ChatDeltaMem) -> None:
        assert model.profile is not None
        able = {name for name, value in model.profile.items() if value is True}
        assert {"tool_calling", "tool_choice", "structured_output", "text_inputs"} <= able
        assert model.profile["image_inputs"] is False
        assert model.profile["max_input_tokens"] == CONTEXT

    def test_the_context_is_read_off_a_folder(self, named: ChatDeltaMem) -> None:
        assert named.profile is not None
        assert named.profile["max_input_tokens"] == CONTEXT

    def test_a_hub_id_is_not_looked_up(self) -> None:
        profile = ChatDeltaMem(model="no/such-model").profile
        assert profile is not None
        assert "max_input_tokens" not in profile

    def test_one_s_own(self, engine: DeltaMemEngine) -> None:
        assert ChatDeltaMem(engine=engine, profile={"max_input_tokens": 7}).profile == {"max_input_tokens": 7}


class TestModelOverride:
    """A call may name another model; it has an engine of its own, and the same store."""

    def test_of_a_call(self, model: ChatDeltaMem, folders: tuple[Path, Path], engine: DeltaMemEngine) -> None:
        other = {"model": str(folders[0]), "adapter": str(folders[1])}
        reply = model.invoke("hello", session_id="alice", **other)
        assert reply.response_metadata["model_name"] == other["model"]
        assert engine.store.session("alice") is not None
        assert model.invoke("hello", **other).content == model.invoke("hello").content

    async def test_async(self, named: ChatDeltaMem, folders: tuple[Path, Path]) -> None:
        again = await named.ainvoke("hello", model=str(folders[0]))
        assert again.content == (await named.ainvoke("hello")).content

    def test_its_own_name_is_no_other(self, model: ChatDeltaMem) -> None:
        assert model.invoke("hello", model="LlamaForCausalLM").content == model.invoke("hello").content
