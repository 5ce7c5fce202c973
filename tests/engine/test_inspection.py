"""Reading a memory: measures on constructed states, and what a turn wrote against the state that it left."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltamem_agents import DeltaMemEngine, FingerprintError, MemoryState, SessionNotFoundError
from deltamem_agents.engine.inspection import MemoryView, directions_in_use, head_norms, replaced_share, stored_view
from deltamem_agents.engine.last_turn import LastTurn
from tests.engine.looking import inspect, last_of, say


def states(*matrices: list[list[float]]) -> Tensor:
    """One layer with a head for each matrix."""
    return torch.tensor([matrices])


E1, E2 = [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]

BOTH, NONE = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]


def test_a_heads_norm_and_directions() -> None:
    state = states([[3.0, 0.0], [0.0, 4.0]], NONE, [[5.0, 5.0], [5.0, 5.0]], [[0.0, 2.0], [2.0, 0.0]])

    assert head_norms(state).tolist() == [[5.0, 0.0, 10.0, pytest.approx(8**0.5)]]
    spread = (9 + 16) ** 2 / (81 + 256)
    assert directions_in_use(state)[0].tolist() == pytest.approx([spread, 0.0, 1.0, 2.0], abs=1e-5)


@pytest.mark.parametrize(
    ("then", "now", "share"),
    [
        (E1, E1, 0.0),
        (E1, [[0.1, 0.0], [0.0, 0.0]], 0.0),
        (E1, E2, 1.0),
        (E1, BOTH, 0.5),
        (E1, [[-1.0, 0.0], [0.0, 0.0]], 1.0),
        (NONE, E1, 1.0),
        (E1, NONE, 0.0),
        (NONE, NONE, 0.0),
    ],
    ids=["same", "faded", "overwritten", "added", "turned round", "from zero", "to zero", "nothing"],
)
def test_the_share_that_was_replaced(then: list[list[float]], now: list[list[float]], share: float) -> None:
    assert replaced_share(states(now), states(then)) == pytest.approx(share)


def test_heads_fade_each_at_its_own_pace_and_count_by_their_energy() -> None:
    then = states(E1, E1)
    assert replaced_share(states([[0.5, 0.0], [0.0, 0.0]], [[0.1, 0.0], [0.0, 0.0]]), then) == pytest.approx(0.0)
    assert replaced_share(states([[3.0, 0.0], [0.0, 0.0]], E2), then) == pytest.approx(0.1)


@given(seed=st.integers(0, 2**31), new=st.floats(0, 10), size=st.floats(1e-3, 1e3))
def test_the_share_is_between_0_and_1_and_knows_no_scale(seed: int, new: float, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    then, written = torch.randn(2, 3, 2, 4, 4, generator=generator)
    share = replaced_share(then + new * written, then)

    assert 0 <= share <= 1
    assert replaced_share(size * (then + new * written), then) == pytest.approx(share, abs=1e-5)
    assert replaced_share(then + 2 * new * written, then) >= share - 0.2


def test_a_view_without_a_model(engine: DeltaMemEngine) -> None:
    say(engine, "one", "two", "three", "four", "five")
    line = engine.store.line(engine.store.session("alice").head)  # type: ignore[union-attr, arg-type]
    tensors = [MemoryState.from_bytes(engine.store.snapshot(turn.id).state).tensor[0] for turn in line]

    view = stored_view(engine.store, "alice")

    assert (view.session, view.snapshot, view.turns, view.messages, view.rank) == ("alice", line[-1].id, 5, 10, 4)
    assert view.norms == tuple(map(tuple, tensors[-1].norm(dim=(2, 3)).tolist()))
    assert all(1 <= used <= 4 for layer in view.directions for used in layer)
    assert view.replaced == {
        1: replaced_share(tensors[-1], tensors[-2]),
        4: replaced_share(tensors[-1], tensors[0]),
    }
    assert view.last is None


def test_everything_is_new_since_the_beginning(engine: DeltaMemEngine) -> None:
    say(engine, "one")
    assert stored_view(engine.store, "alice").replaced == {1: 1.0}


def test_a_pruned_line_tells_what_it_still_can(engine: DeltaMemEngine) -> None:
    say(engine, "one", "two", "three", "four")
    engine.store.prune("alice", keep=2)
    assert list(stored_view(engine.store, "alice").replaced) == [1]

    engine.store.prune("alice", keep=1)
    assert stored_view(engine.store, "alice").replaced == {}
    (user, _) = last_of(inspect(engine, "alice")).messages
    assert (user.written, user.writes) == (True, None)


def test_a_session_without_a_head_is_empty(engine: DeltaMemEngine) -> None:
    say(engine, "one")
    head = engine.store.session("alice").head  # type: ignore[union-attr]
    engine.store.move_head("alice", None, expected=head)

    view = inspect(engine, "alice")

    assert (view.snapshot, view.norms, view.replaced, view.last) == (None, (), {}, None)


def test_an_unknown_session_is_an_error(engine: DeltaMemEngine) -> None:
    with pytest.raises(SessionNotFoundError, match="bob"):
        inspect(engine, "bob")


def test_a_session_of_another_model_is_an_error(engine: DeltaMemEngine) -> None:
    say(engine, "one")
    with pytest.raises(FingerprintError, match="rebuild"):
        inspect(engine, "alice", fingerprint="other")
    assert inspect(engine, "alice", fingerprint="other", writes=False).turns == 1


def test_nothing_is_changed_by_looking(engine: DeltaMemEngine) -> None:
    say(engine, "one", "two")
    before, hooks = engine.state("alice").tensor.clone(), [len(m._forward_hooks) for m in engine.model.modules()]

    inspect(engine, "alice")

    assert torch.equal(engine.state("alice").tensor, before)
    assert [len(m._forward_hooks) for m in engine.model.modules()] == hooks


def test_a_view_is_text_and_json(engine: DeltaMemEngine) -> None:
    say(engine, "one")
    view = inspect(engine, "alice")
    (user, _) = last_of(view).messages

    data = json.loads(json.dumps(view.as_dict()))
    assert data["last"]["messages"][0]["strength"] == user.strength
    assert data["replaced"] == {"1": 1.0}

    text = str(view)
    assert "session 'alice': 1 turns, 2 messages" in text
    assert "replaced by the last 1 turns: 100%" in text
    assert f"user: strength {user.strength:.3f}" in text
    assert "assistant: not written, reads open up to 0." in text
    assert "text not kept" in str(replace(view, last=last_of_unknown(view)))


def last_of_unknown(view: MemoryView) -> LastTurn:
    last = last_of(view)
    return replace(last, messages=tuple(replace(m, writes=None, strength=None, reads=None) for m in last.messages))
