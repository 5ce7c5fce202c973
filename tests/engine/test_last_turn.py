"""What a turn wrote and read, run again: against the state that it left, and against each layer's own."""

from collections.abc import Callable

import pytest
import torch

from deltamem_agents import DeltaMemEngine, DeltaMemModel, Message
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.engine.prompts import PromptWriter
from tests.builders import MECHANISMS
from tests.chat import chat_model
from tests.engine.conftest import model_for
from tests.engine.looking import inspect, last_of, say
from tests.truth import by_the_book, weights_of

Start = Callable[..., DeltaMemEngine]

ALL = ("user", "assistant", "tool")

KINDS = {
    "token": {},
    "replies too": {"roles": ALL},
    "message spans": {"roles": ALL, "granularity": "message_mean"},
    "sentence spans": {"granularity": "sentence_mean"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turns", [1, 3])
def test_the_run_comes_to_the_stored_state(start: Start, kind: str, turns: int) -> None:
    engine = start(model_for(**KINDS[kind]))  # type: ignore[arg-type]
    say(engine, *["Tom is a cat. He purrs.", "Really?", "His dish\nis red. Yes! He is."][:turns])

    last = last_of(inspect(engine, "alice"))

    assert last.drift is not None
    assert last.drift < 1e-3


def test_the_run_starts_where_the_turns_window_did(start: Start) -> None:
    engine = start(recent_messages=2)
    say(engine, *"abcdefg")
    drift = last_of(inspect(engine, "alice", recent_messages=2)).drift
    assert drift is not None
    assert drift < 1e-3


def test_the_run_undoes_no_other_thread(engine: DeltaMemEngine) -> None:
    for n, thread in enumerate(("phone", "desk", "phone", "phone")):
        say(engine, f"word {n}", thread=thread)
    last = last_of(inspect(engine, "alice"))
    assert last.drift is not None
    assert last.drift < 1e-3
    assert last.messages[0].writes is not None
    assert "word 3" in "".join(write.text for write in last.messages[0].writes)


def test_a_run_that_lacks_the_system_prompt_says_how_far_off_it_is(engine: DeltaMemEngine) -> None:
    told = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Hi."}]
    engine.generate(told, session="alice", max_new_tokens=4)
    drift = last_of(inspect(engine, "alice")).drift
    assert drift is not None
    assert 1e-3 < drift < 2


def test_writes_are_the_tokens_of_the_written_messages(engine: DeltaMemEngine) -> None:
    say(engine, "one", "the cat")

    user, reply = last_of(inspect(engine, "alice")).messages

    assert user.writes is not None
    assert "".join(write.text for write in user.writes) == "<|im_start|>user\nthe cat<|im_end|>\n"
    assert {write.tokens for write in user.writes} == {1}
    assert user.written
    assert user.strength == pytest.approx(sum(write.strength for write in user.writes))
    assert (reply.role, reply.written, reply.writes, reply.strength) == ("assistant", False, (), 0)


def test_a_span_is_one_write(start: Start) -> None:
    engine = start(model_for(granularity="sentence_mean"))
    say(engine, "Tom is a cat. He purrs.")

    (user, _) = last_of(inspect(engine, "alice")).messages

    assert user.writes is not None
    assert [write.text for write in user.writes] == ["<|im_start|>user\n", "Tom is a cat.", " He purrs.<|im_end|>\n"]
    assert sum(write.tokens for write in user.writes) > 3


def test_strengths_and_gates_are_those_of_the_layers(start: Start) -> None:
    """Against the equations, a token at a time, from one forward that shows each layer its inputs."""
    model = model_for(roles=ALL)
    engine = start(model)
    say(engine, "the cat")
    last = last_of(inspect(engine, "alice"))
    writes = [write for message in last.messages for write in message.writes or ()]

    layers, seen = list(model.adapter.layers.values()), {}
    hooks = [layer.register_forward_hook(lambda m, args, out: seen.update({m: args[0]})) for layer in layers]
    replayed(engine, model)
    for hook in hooks:
        hook.remove()
    strengths, betas, lams, gates = [], [], [], []
    for layer in layers:
        hidden, weights, state, carry, found = seen[layer], weights_of(layer), torch.zeros(1, 2, 4, 4), None, []
        for t in range(hidden.shape[1]):
            on = torch.tensor([[t >= hidden.shape[1] - len(writes)]])
            truth = by_the_book(weights, layer.config, hidden[:, t : t + 1], state, write=on, carry=carry)
            if on:
                change = float((truth.state - state).norm() / truth.state.norm()) if truth.state.any() else 0.0
                numbers = (truth.betas, truth.keeps, truth.gates)
                found.append((change, *(float(number.mean()) for number in numbers)))
            state, carry = truth.state, truth.carry
        for numbers, per_write in zip((strengths, betas, lams, gates), zip(*found, strict=True), strict=True):
            numbers.append(per_write)

    numbers = (strengths, betas, lams, gates)
    strengths, betas, lams, gates = (torch.tensor(number) for number in numbers)  # [layers, writes]
    assert [write.strength for write in writes] == pytest.approx(strengths.mean(0).tolist(), abs=1e-4)
    assert [write.write_gate for write in writes] == pytest.approx(betas.mean(0).tolist(), abs=1e-4)
    assert [write.keep_gate for write in writes] == pytest.approx(lams.mean(0).tolist(), abs=1e-4)
    assert last.write_gates == pytest.approx(betas.mean(1).tolist(), abs=1e-4)
    assert last.keep_gates == pytest.approx(lams.mean(1).tolist(), abs=1e-4)
    assert [write.read_gate for write in writes] == pytest.approx(gates.mean(0).tolist(), abs=1e-4)
    assert last.read_gates == pytest.approx(gates.mean(1).tolist(), abs=1e-4)
    assert [(r.text, r.gate) for m in last.messages for r in m.reads or ()] == [(w.text, w.read_gate) for w in writes]
    assert strengths[:, 0].tolist() == [1.0] * len(layers)  # all of the state is its first write


def test_reads_are_told_of_messages_that_are_not_written_too(engine: DeltaMemEngine) -> None:
    say(engine, "one", "the cat")
    last = last_of(inspect(engine, "alice"))
    for message in last.messages:
        assert message.reads
        assert all(0 <= read.gate <= 1 for read in message.reads)
    assert not last.messages[1].written
    (turn,) = engine.store.line(engine.store.session("alice").head)[-1:]  # type: ignore[union-attr, arg-type]
    assert [len(message.reads or ()) for message in last.messages] == [entry.tokens for entry in turn.entries]
    everything = [read.gate for message in last.messages for read in message.reads or ()]
    assert sum(last.read_gates) / len(last.read_gates) == pytest.approx(sum(everything) / len(everything), abs=1e-5)


def test_a_span_reads_as_its_tokens_do(start: Start) -> None:
    engine = start(model_for(granularity="sentence_mean"))
    say(engine, "Tom is a cat. He purrs.")
    (user, _) = last_of(inspect(engine, "alice")).messages
    gates = [read.gate for read in user.reads or ()]
    for write in user.writes or ():
        assert write.read_gate == pytest.approx(sum(gates[: write.tokens]) / write.tokens, abs=1e-6)
        gates = gates[write.tokens :]
    assert not gates


def test_reads_without_a_gate_are_not_told(start: Start) -> None:
    engine = start(chat_model(**MECHANISMS["published"]))
    say(engine, "one")
    view = inspect(engine, "alice")
    last = last_of(view)
    assert last.read_gates == ()
    assert [message.reads for message in last.messages] == [(), ()]
    assert {write.read_gate for write in last.messages[0].writes or ()} == {None}
    assert last.drift is not None
    assert last.drift < 1e-3
    assert "reads open" not in str(view)


def replayed(engine: DeltaMemEngine, model: DeltaMemModel) -> None:
    """The conversation of a session as one forward."""
    (turn,) = engine.store.line(engine.store.session("alice").head)  # type: ignore[union-attr, arg-type]
    messages = [Message.model_validate_json(entry.text or "") for entry in turn.entries]
    rendered = PromptWriter(ChatTemplate(engine.tokenizer), model.adapter.config).render((), messages, write=True)
    on = [piece.write for piece in rendered.pieces for _ in piece.ids]
    with torch.no_grad():
        model(torch.tensor([rendered.ids]), write=torch.tensor([on]))


def test_absorbed_messages_are_told_apart(engine: DeltaMemEngine) -> None:
    engine.absorb([{"role": "user", "content": "one"}, {"role": "tool", "content": "two"}], session="alice")
    user, tool = last_of(inspect(engine, "alice")).messages
    for message, text in ((user, "one"), (tool, "two")):
        assert message.writes is not None
        assert text in "".join(write.text for write in message.writes)


def test_a_turn_longer_than_the_context_is_run_in_parts(start: Start) -> None:
    engine = start(model_for(context=128))
    engine.absorb([{"role": "user", "content": f"{n} is a number, and a long one"} for n in range(6)], session="alice")

    last = last_of(inspect(engine, "alice"))

    assert all(message.writes for message in last.messages)
    assert last.drift is not None
    assert last.drift < 1e-3


def test_texts_that_are_not_kept(start: Start) -> None:
    engine = start(transcript="none")
    say(engine, "one")

    last = last_of(inspect(engine, "alice"))

    assert [(m.role, m.written, m.writes, m.strength) for m in last.messages] == [
        ("user", True, None, None),
        ("assistant", False, None, None),
    ]
    assert (last.write_gates, last.keep_gates, last.read_gates, last.drift) == ((), (), (), None)
    assert {message.reads for message in last.messages} == {None}


@pytest.mark.parametrize("recent", [0, 1, 2, 16])
def test_a_turn_is_run_again_behind_the_window_that_it_was_made_with(recent: int, engine: DeltaMemEngine) -> None:
    """Which is not on record: the picture must be of the stored state, whatever the engine's own window is."""
    say(engine, "the cat", "is as", "the user", "an", "the the", recent_messages=recent)
    drift = last_of(inspect(engine, "alice")).drift
    assert drift is not None
    assert drift < 0.01
