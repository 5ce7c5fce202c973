"""Each message is in the memory exactly once, however a framework passes, retries, regenerates and edits it."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltamem_agents import DeltaMemEngine, MemoryState
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for
from tests.engine.ledger import WrittenTokens
from tests.engine.visible import STYLES, Client, check_ledger, replayed

ALL, USER = ("user", "assistant", "tool"), ("user", "tool")
TEXTS = st.sampled_from(["hi", "ok", "yes", "hi", "the cat", "a dog."])
GOING_BACK = ["retry", "regenerate", "edit"]
STEPS = st.lists(st.tuples(st.sampled_from(["say", "say", "tool", *GOING_BACK]), TEXTS, st.integers(0, 9)), max_size=7)


def near(state: MemoryState, expected: MemoryState) -> bool:
    return bool((state.tensor - expected.tensor).norm() <= 1e-3 * expected.tensor.norm())


def open_engine(roles: tuple[str, ...], recent: int) -> DeltaMemEngine:
    return DeltaMemEngine(model_for(roles), byte_tokenizer(), store=":memory:", recent_messages=recent)


def step(client: Client, action: str, text: str, number: int) -> None:
    if action == "regenerate" and client.turns:
        client.regenerate()
    elif action == "edit" and len(client.turns) > 1:
        client.edit(1 + number % (len(client.turns) - 1), text)
    elif action == "tool" and client.turns:
        client.say([client.message("tool", text), client.message("user", text)])
    else:
        client.say([client.message("user", text)], calls=2 if action == "retry" else 1)


@given(STEPS, st.sampled_from([0, 2, 4]), st.sampled_from([USER, ALL]))
@pytest.mark.parametrize("style", [name for name in STYLES if name != "only_new"])
def test_with_ids_the_memory_is_that_of_the_visible_line(
    style: str, steps: Sequence[tuple[str, str, int]], recent: int, roles: tuple[str, ...]
) -> None:
    with open_engine(roles, recent) as engine, WrittenTokens(engine.model) as written:
        client = Client(engine, STYLES[style], ids=True)
        for action, text, number in [("say", "hi", 0), *steps]:
            step(client, action, text, number)
            check_ledger(engine, written, client.past)
        assert near(engine.state("alice"), replayed(engine, client.turns, recent).state)


@given(st.lists(st.tuples(st.sampled_from(["say", "retry", "regenerate"]), TEXTS, st.just(0)), max_size=7))
def test_with_ids_passing_only_what_is_new_is_enough(steps: Sequence[tuple[str, str, int]]) -> None:
    with open_engine(ALL, 4) as engine, WrittenTokens(engine.model) as written:
        client = Client(engine, STYLES["only_new"], ids=True)
        for action, text, number in steps:
            step(client, action, text, number)
            check_ledger(engine, written, client.past)


FORGETFUL = ["say the cat", "say yes", "say yes", "tool the cat", "say a dog.", "tool the cat", "say hi"]


@given(st.lists(st.tuples(st.sampled_from(["say", "tool"]), TEXTS, st.just(0)), max_size=7), st.sampled_from([0, 2, 4]))
@example([(action, text, 0) for action, _, text in (step.partition(" ") for step in FORGETFUL)], 2)
@pytest.mark.parametrize("style", STYLES)
def test_without_ids_what_is_said_again_is_new_and_nothing_else(
    style: str, steps: Sequence[tuple[str, str, int]], recent: int
) -> None:
    with open_engine(ALL, recent) as engine, WrittenTokens(engine.model) as written:
        client = Client(engine, STYLES[style], ids=False)
        for action, text, number in [("say", "hi", 0), *steps]:
            step(client, action, text, number)
            check_ledger(engine, written, client.past)
        assert near(engine.state("alice"), replayed(engine, client.turns, recent).state)


@given(st.lists(st.sampled_from(["say", "retry", "regenerate"]), max_size=6))
@pytest.mark.parametrize("style", ["full", "trimmed", "summarised"])
def test_without_ids_the_last_question_asked_again_gets_another_reply(style: str, steps: Sequence[str]) -> None:
    """Where texts tell the messages apart."""
    with open_engine(ALL, 4) as engine, WrittenTokens(engine.model) as written:
        client = Client(engine, STYLES[style], ids=False)
        for number, action in enumerate(["say", "say", *steps]):
            step(client, action, f"message {number}", 0)
            replies = [e.digest for turn in engine.session("alice").log() for e in turn.entries if e.role != "user"]
            if len(set(replies)) < len(replies):
                return  # the random model has said the same thing twice
            check_ledger(engine, written, client.past)


@given(STEPS, st.sampled_from(sorted(STYLES)))
def test_without_ids_nothing_is_ever_lost(steps: Sequence[tuple[str, str, int]], style: str) -> None:
    with open_engine(ALL, 4) as engine:
        client = Client(engine, STYLES[style], ids=False)
        for action, text, number in [("say", "hi", 0), *steps]:
            step(client, action, text, number)
            line = engine.store.line(engine.session("alice").info.head or "")
            held = {entry.digest for turn in line for entry in turn.entries}
            assert {m.digest() for m in client.past} <= held


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), TEXTS), min_size=1, max_size=8), st.sampled_from([0, 2, 4]))
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_interleaved_threads_share_the_memory_and_keep_their_own_windows(
    style: str, ids: bool, steps: Sequence[tuple[str, str]], recent: int
) -> None:
    with open_engine(ALL, recent) as engine, WrittenTokens(engine.model) as written:
        clients = {name: Client(engine, STYLES[style], ids=ids, thread=name) for name in ("a", "b")}
        said = []
        for thread, text in steps:
            client = clients[thread]
            said.append(client.say([client.message("user", text)]))
            check_ledger(engine, written, [m for turn in said for m in (*turn.new, turn.reply)])
        assert near(engine.state("alice"), replayed(engine, said, recent).state)
