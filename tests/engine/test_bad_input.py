"""Whatever is wrong is said with what was found, what was expected and what to do; the engine goes on afterwards."""

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from deltamem_agents import (
    AdapterError,
    BackboneError,
    ConfigError,
    ContextOverflowError,
    DeltaMemAdapter,
    DeltaMemConfig,
    DeltaMemEngine,
    DeltaMemError,
    DeltaMemModel,
    FingerprintError,
    GenerationError,
    MemoryStore,
    Message,
    MessageError,
    SessionError,
    SessionNotFoundError,
    SQLStore,
    StateError,
    StoreError,
)
from tests.builders import adapted, randomised, tiny
from tests.chat import byte_tokenizer, chat_backbone, chat_model
from tests.engine.conftest import Start, model_for
from tests.engine.reference import message_ids

Call = Callable[[DeltaMemEngine], object]


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def goes_on(engine: DeltaMemEngine) -> None:
    assert engine.generate([user("hi")], session="other", max_new_tokens=2).snapshot is not None


MESSAGES: list[tuple[object, str]] = [
    ([], "messages is empty: give at least one"),
    ("hi", "got a single str: wrap it in a list"),
    ({"role": "user", "content": "hi"}, "got a single dict"),
    (user("hi"), "got a single Message"),
    (None, "got NoneType"),
    (5, "got int"),
    ([{"role": "robot", "content": "hi"}], "message 0 is not valid .*role.*'assistant'"),
    ([{"role": "user"}], "message 0 .*content"),
    ([{"role": "user", "content": None}], "message 0 .*content.*string"),
    ([{"role": "user", "content": [{"type": "text"}]}], "message 0 .*part of type 'text' holds None"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "message 0 .*this is a text model, expected parts of"),
    ([user("hi"), {"role": "user", "content": "hi", "name": "x"}], "message 1 .*name"),
    ([{"role": "user", "content": "hi", "id": 5}], "message 0 .*id.*string"),
    ([{"role": "user", "content": "\ud800"}], "message 0 .*content"),
    (["hi"], "message 0"),
]


@pytest.mark.parametrize(("messages", "says"), MESSAGES)
def test_messages_that_are_none(messages: object, says: str, engine: DeltaMemEngine) -> None:
    with pytest.raises(MessageError, match=f"(?s){says}"):
        engine.generate(messages, session="alice")  # type: ignore[arg-type]
    assert engine.sessions() == []
    goes_on(engine)


@pytest.mark.parametrize("recent", [0, 8])
def test_a_history_that_ends_with_the_assistant_gets_another_reply(recent: int, start: Start) -> None:
    """As when agents speak one after the other; nothing is absorbed twice, and nothing is undone."""
    engine = start(recent_messages=recent)
    first = engine.generate([user("hi")], session="alice", max_new_tokens=2)
    for history in ([user("hi"), first.reply], [user("hi"), assistant(first.reply.content)]):
        before = engine.sessions()[0]
        turn = engine.generate(history, session="alice", max_new_tokens=2)
        log = engine.session("alice").log()
        assert (engine.sessions()[0].messages, log[-1].parent) == (before.messages + 1, before.head)
        assert [entry.message_id for entry in log[-1].entries] == [turn.snapshot]
        engine.session("alice").rollback(turns=1)
    assert engine.generate([user("hi"), assistant("ho")], max_new_tokens=2).usage.completion_tokens > 0


def test_an_unknown_assistant_at_the_end_is_kept_as_the_assistants(start: Start) -> None:
    engine = start()
    engine.generate([user("hi"), assistant("I am the other agent")], session="alice", max_new_tokens=2)
    roles = [entry.role for entry in engine.session("alice").log()[0].entries]
    assert roles == ["user", "assistant", "assistant"]


def test_a_prompt_of_a_system_message_alone(start: Start) -> None:
    engine = start()
    system = Message(role="system", content="Greet the user.")
    alone = engine.generate([system], max_new_tokens=4)
    turn = engine.generate([system], session="alice", max_new_tokens=4)
    assert turn.reply.content == alone.reply.content
    (log,) = engine.session("alice").log()
    assert [entry.role for entry in log.entries] == ["assistant"]
    assert engine.state("alice").tensor.abs().sum() == 0
    again = engine.generate([system, turn.reply, user("hi")], session="alice", max_new_tokens=2)
    assert [entry.role for entry in engine.store.snapshot(again.snapshot or "").entries] == ["user", "assistant"]


NAMES: list[tuple[object, str]] = [
    ("", "0 characters"),
    (" alice", "blanks"),
    ("a\nb", "printable"),
    ("a\0b", "printable"),
    ("\ud800", "printable"),
    ("x" * 201, "201 characters.*1 to 200"),
    (5, "got int: 5"),
    (b"alice", "got bytes"),
]
CALLS: list[Call] = []


@pytest.mark.parametrize(("name", "says"), NAMES)
def test_bad_session_names(name: str, says: str, engine: DeltaMemEngine) -> None:
    calls: list[Callable[[], object]] = [
        lambda: engine.generate([user("hi")], session=name),
        lambda: engine.stream([user("hi")], session=name),
        lambda: engine.astream([user("hi")], session=name),
        lambda: engine.batch([[user("hi")]], sessions=[name]),
        lambda: engine.absorb([user("hi")], session=name),
        lambda: engine.state(name),
        lambda: engine.forget(name),
        lambda: engine.generate([user("hi")], session="alice", thread=name or " "),
    ]
    for call in calls:
        with pytest.raises(SessionError):
            call()
    with pytest.raises(SessionError, match=f"(?s){says}"):
        engine.generate([user("hi")], session=name)
    assert engine.sessions() == []
    goes_on(engine)


@pytest.mark.parametrize("name", ["alice", "Ünï 漢字 🦊", "a/b:c'\"; --", "x" * 200, "%_*"])
def test_any_printable_name_is_a_session(name: str, engine: DeltaMemEngine) -> None:
    engine.generate([user("hi")], session=name, max_new_tokens=2)
    assert [info.name for info in engine.sessions(prefix=name)] == [name]
    engine.forget(name)
    assert engine.sessions() == []


def test_sessions_that_do_not_exist(engine: DeltaMemEngine) -> None:
    for call in (engine.state, engine.forget):
        with pytest.raises(SessionNotFoundError, match="nobody"):
            call("nobody")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"memory": "write"}, ConfigError, "'write', expected one of read_write, read, off"),
        ({"memory": None}, ConfigError, "expected one of"),
        ({"recent_messages": -1}, ConfigError, "recent_messages is -1, expected a whole number, 0 or more"),
        ({"recent_messages": 2.5}, ConfigError, "recent_messages is 2.5"),
        ({"recent_messages": "8"}, ConfigError, "recent_messages is '8'"),
        ({"max_tokens": 5}, GenerationError, "max_tokens.*known are max_new_tokens"),
        ({"temperature": -1}, GenerationError, "temperature"),
    ],
)
def test_bad_options_of_a_call(
    options: dict[str, object], error: type[DeltaMemError], says: str, engine: DeltaMemEngine
) -> None:
    with pytest.raises(error, match=says):
        engine.generate([user("hi")], session="alice", **options)  # type: ignore[arg-type]
    assert engine.sessions() == []
    goes_on(engine)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"transcript": "some"}, "'some', expected one of window, full, none"),
        ({"recent_messages": -1}, "recent_messages is -1"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens is 0, expected a whole number, 1 or more"),
        ({"max_prompt_tokens": "many"}, "max_prompt_tokens is 'many'"),
        ({"cache_bytes": -1}, "cache_bytes is -1"),
    ],
)
def test_bad_options_of_an_engine(options: dict[str, object], says: str, start: Start) -> None:
    with pytest.raises(ConfigError, match=says):
        start(**options)


def test_a_message_longer_than_the_context_names_the_numbers(start: Start) -> None:
    engine = start(model_for(context=256))
    long = user("word " * 100)
    tokens = len(message_ids(long))
    for call in (
        lambda: engine.generate([user("hi"), long], session="alice", max_new_tokens=20),
        lambda: engine.absorb([user("hi"), long], session="alice"),
    ):
        with pytest.raises(ContextOverflowError, match=rf"new message 1 \(user\) has {tokens} tokens.*context 256"):
            call()
    assert engine.sessions() == []
    with pytest.raises(ContextOverflowError, match=r"the prompt has \d+ tokens, but \d+ fit .*name a session"):
        engine.generate([long], max_new_tokens=20)
    with pytest.raises(ContextOverflowError, match=r"system prompt and shown context take \d+ tokens"):
        engine.generate([Message(role="system", content="word " * 100), user("hi")], session="alice", max_new_tokens=20)
    with pytest.raises(ConfigError, match=r"max_new_tokens is 1000, and the model's context is 256 .*at most 247"):
        engine.generate([user("hi")], session="alice", max_new_tokens=1000)
    goes_on(engine)


@pytest.mark.parametrize("family", ["OPT", "Llama"])
def test_a_prompt_and_reply_that_just_fit_do(family: str, start: Start) -> None:
    """OPT has an embedding for each position: one token too many would be an error."""
    model = adapted(backbone=chat_backbone(family, context=128), absorb_roles=("user", "assistant"))
    engine = start(model)
    lengths = iter(range(128, 0, -1))
    while True:
        try:
            turn = engine.generate([user("x" * next(lengths))], session="alice", max_new_tokens=20)
            break
        except ContextOverflowError:
            pass
    assert 128 - 20 - 10 < turn.usage.prompt_tokens <= 128 - 20


def test_a_tokenizer_without_a_chat_template() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer)
    with pytest.raises(MessageError, match=r"no chat template: set tokenizer\.chat_template"):
        DeltaMemEngine(model_for(), bare, store=":memory:")


def test_a_template_that_refuses_a_role(start: Start) -> None:
    picky = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer,
        chat_template="{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "[{{ m['content'] }}]{% endfor %}",
    )
    with DeltaMemEngine(model_for(), picky, store=":memory:") as engine:
        assert engine.generate([user("hi"), Message(role="tool", content="5")], session="alice", max_new_tokens=2)
        (log,) = engine.session("alice").log()
        assert [entry.role for entry in log.entries][:2] == ["user", "tool"]


def test_a_template_that_refuses_everything(start: Start) -> None:
    picky = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer, chat_template="{{ raise_exception('no') }}"
    )
    with DeltaMemEngine(model_for(), picky, store=":memory:") as engine:
        with pytest.raises(MessageError, match=r"refuses messages with roles \['user'\]: no"):
            engine.generate([user("hi")], session="alice")
        assert engine.sessions() == []


@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/folder", "./nothing", "bad//name", ""])
def test_models_that_cannot_be_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model_for().adapter.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=f"(?s){re.escape(repr(name))} could not be loaded.*check the name"):
        DeltaMemEngine.from_pretrained(name, adapter=tmp_path, store=":memory:")


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    model_for().adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(BackboneError, match=r"no model at .*expected a folder with a config\.json, or a hub id"):
        DeltaMemEngine.from_pretrained(tmp_path / "nothing", adapter=tmp_path / "adapter")
    with pytest.raises(AdapterError, match="nothing"):
        DeltaMemEngine.from_pretrained(tmp_path, adapter=tmp_path / "nothing")
    with pytest.raises(AdapterError, match=r"no adapter ships for .*adapter=…"):
        DeltaMemEngine.from_pretrained(tmp_path)


def test_an_adapter_for_another_backbone_names_both(tmp_path: Path) -> None:
    chat_backbone().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    other = chat_model("Qwen3").adapter
    other.save_pretrained(tmp_path / "adapter")
    with pytest.raises(FingerprintError, match=f"{other.backbone}.*{model_for().adapter.backbone}.*load the model"):
        DeltaMemEngine.from_pretrained(tmp_path / "model", adapter=tmp_path / "adapter", store=":memory:")


@pytest.mark.parametrize("turns", [1, 6])
def test_a_session_of_another_adapter_names_both_and_is_left_alone(turns: int, start: Start) -> None:
    """Also where the whole line is in the window, and a replay would not need the state."""
    first = start(recent_messages=2)
    for number in range(turns):
        first.generate([user(f"{number}")], session="alice", max_new_tokens=2)
    backbone = chat_backbone()
    config = DeltaMemConfig.parse({"rank": 4, "alpha": 4.0, "num_state_heads": 2})
    other = start(DeltaMemModel(backbone, randomised(DeltaMemAdapter.initialize(config, backbone), seed=1)))
    says = f"{re.escape(first.fingerprint)}.*{re.escape(other.fingerprint)}"
    head = first.sessions()
    for call in (
        lambda: other.generate([user("hi")], session="alice"),
        lambda: other.generate([user("hi")], session="alice", memory="read"),
        lambda: other.absorb([user("hi")], session="alice"),
        lambda: other.state("alice"),
    ):
        with pytest.raises(FingerprintError, match=says):
            call()
    assert first.sessions() == head
    goes_on(other)
    first.generate([user("hi")], session="alice", max_new_tokens=2)


def test_a_state_of_nans_is_never_kept(start: Start) -> None:
    model = adapted(backbone=chat_backbone(), absorb_roles=("user",))
    engine = start(model)
    engine.generate([user("hi")], session="alice", max_new_tokens=2)
    head = engine.sessions()
    bias = next(iter(model.adapter.layers.values())).gate_bias
    kept = bias.detach().clone()
    bias.data.fill_(float("nan"))
    with pytest.raises(StateError, match="NaN"):
        engine.generate([user("the cat")], session="alice", max_new_tokens=2)
    assert engine.sessions() == head
    bias.data.copy_(kept)
    engine.generate([user("the cat")], session="alice", max_new_tokens=2)


# --- databases


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A database with a session in it."""
    path = tmp_path / "store.db"
    with DeltaMemEngine(model_for(), byte_tokenizer(), store=path) as engine:
        engine.generate([user("hi")], session="alice", max_new_tokens=2)
    return path


def test_a_locked_database(told: Path, start: Start) -> None:
    engine = start(store=SQLStore(told, timeout=0.05))
    head = engine.sessions()
    with closing(sqlite3.connect(told)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="is locked"):
            engine.generate([user("the cat")], session="alice", max_new_tokens=2)
        with pytest.raises(StoreError, match="is locked"):
            engine.absorb([user("the cat")], session="alice")
        with pytest.raises(StoreError, match="is locked"):
            engine.forget("alice")
        assert engine.generate([user("the cat")], session="alice", memory="read", max_new_tokens=2).reply.content
    assert engine.sessions() == head
    engine.generate([user("the cat")], session="alice", max_new_tokens=2)
    assert engine.sessions()[0].messages == 4


def test_a_read_only_database(told: Path, start: Start) -> None:
    engine = start(store=f"sqlite:///file:{told}?mode=ro&uri=true")
    with pytest.raises(StoreError, match="read-only"):
        engine.generate([user("the cat")], session="alice", max_new_tokens=2)
    assert engine.generate([user("the cat")], session="alice", memory="read", max_new_tokens=2).reply.content
    assert engine.sessions()[0].messages == 2


def test_a_full_database(told: Path, start: Start) -> None:
    store = SQLStore(told)
    engine = start(store=store)
    head = engine.sessions()
    with store._database._reader.connect() as connection:  # a limit on the pages is the nearest thing to a full disk
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def fill() -> None:
        for number in range(50):
            engine.generate([user(f"{number} " + "word " * 100)], session=f"s{number}", max_new_tokens=2)

    with pytest.raises(StoreError, match="no room left"):
        fill()
    kept = engine.sessions(prefix="s")
    assert all((info.turns, info.messages) == (1, 2) for info in kept)
    assert engine.sessions(prefix="alice") == head
    engine.forget("s0") if kept else engine.forget("alice")
    with start(store=told) as again:
        goes_on(again)


def test_a_damaged_database(told: Path, start: Start) -> None:
    data = bytearray(told.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    told.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        start(store=told).generate([user("hi")], session="alice", max_new_tokens=2)


def test_no_database_at_all(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be read as one " * 20)
    with pytest.raises(StoreError, match=r"notes\.txt is not a database: expected a SQLite file"):
        start(store=path)
    with pytest.raises(StoreError, match="cannot be"):
        start(store=tmp_path)


def test_a_damaged_state_is_not_used(told: Path, start: Start) -> None:
    with closing(sqlite3.connect(told)) as connection:
        [(state,)] = connection.execute("SELECT state FROM deltamem_snapshots").fetchall()
        connection.execute("UPDATE deltamem_snapshots SET state = ?", (state[:-1] + bytes([state[-1] ^ 1]),))
        connection.commit()
    engine = start(store=told)
    with pytest.raises(StateError, match="damaged"):
        engine.state("alice")
    with pytest.raises(StateError, match="damaged"):
        engine.generate([user("hi")], session="alice", recent_messages=0)
    goes_on(engine)


def test_an_engine_that_could_not_be_made_leaves_the_model_usable(start: Start, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        start(store=tmp_path)
    goes_on(start(store=MemoryStore()))


def test_a_model_that_was_detached(start: Start) -> None:
    model = adapted(backbone=tiny(vocab_size=300, max_position_embeddings=512))
    engine = start(model)
    model.detach()
    with pytest.raises(AdapterError, match="detached"):
        engine.generate([user("hi")], session="alice")
    assert engine.sessions() == []
