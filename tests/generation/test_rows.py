"""Rows and batches: what a key needs of the token before belongs to its row, wherever the row goes."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents import DeltaMemModel
from deltamem_agents.errors import StateError
from deltamem_agents.generation import Batch, Piece, Row, feed
from deltamem_agents.generation.rows import rewound
from tests.builders import MECHANISMS, adapted, tokens

mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)
IDS = [tuple(tokens(1, 9 + 4 * n, seed=n)[0].tolist()) for n in range(4)]


@cache
def model_of(mechanism: str, **options: object) -> DeltaMemModel:
    return adapted(**MECHANISMS[mechanism], **options)


def fed(model: DeltaMemModel, *ids: tuple[int, ...], write: bool = True) -> Row:
    """A new row after some pieces, each in a forward of its own."""
    row = Row(model.zero_state())
    for part in ids:
        row, _ = feed(model, row, [Piece(part, write)])
    return row


def same(one: Row, other: Row) -> bool:
    """Whether both stand where the other does: what they hold, and what the next token comes to after it."""
    assert one.ids == other.ids
    assert (one.carry is None) == (other.carry is None)
    pairs = [(one.state.tensor, other.state.tensor), (one.carry, other.carry)]
    for mine, its in zip(one.cache.layers, other.cache.layers, strict=True):
        pairs += [(mine.keys, its.keys), (mine.values, its.values)]
    return all(a is b is None or torch.allclose(a, b, atol=1e-4) for a, b in pairs)


@mechanism
@given(cuts=st.sets(st.integers(1, 16), max_size=5), write=st.booleans())
@settings(max_examples=10)
def test_a_row_fed_in_parts_is_the_row_fed_whole(mechanism: str, cuts: set[int], write: bool) -> None:
    model, ids = model_of(mechanism), IDS[2]
    ends = sorted(cuts)
    parts = [ids[a:b] for a, b in zip([0, *ends], [*ends, len(ids)], strict=True)]
    with torch.inference_mode():
        assert same(fed(model, *parts, write=write), fed(model, ids, write=write))


@mechanism
def test_span_writes_in_forwards_of_their_own_go_on_from_the_carry(mechanism: str) -> None:
    model, ids = model_of(mechanism, write_granularity="message_mean"), IDS[2]
    pieces = [Piece(ids[:5], True, (0,) * 5), Piece(ids[5:8], False), Piece(ids[8:], True, (1,) * len(ids[8:]))]
    row, _ = feed(model, Row(model.zero_state()), pieces)
    out = model(torch.tensor([ids]), write=False)
    assert (row.carry is None) == (out.carry is None)
    assert row.carry is None or torch.allclose(row.carry[:, 0], out.carry[:, 0], atol=1e-5)  # no memory moves layer 0


@mechanism
@given(data=st.data())
@settings(max_examples=12)
def test_rows_that_come_and_go_are_as_if_alone(mechanism: str, data: st.DataObject) -> None:
    """Rows join a batch and leave it in any order, tokens written or not; each is in the end what it is by itself."""
    model = model_of(mechanism)
    with torch.inference_mode():
        waiting = {n: fed(model, IDS[n]) for n in range(4)}
        told: dict[int, list[tuple[int, bool]]] = {n: [] for n in waiting}
        inside, batch, done = list[int](), None, dict[int, Row]()
        for _ in range(data.draw(st.integers(2, 7))):
            new = sorted(data.draw(st.sets(st.sampled_from(sorted(waiting))))) if waiting else []
            keep = sorted(data.draw(st.sets(st.sampled_from(inside)))) if inside else []
            for place, n in enumerate(inside):
                if n not in keep:
                    done[n] = batch.row(place)
            rows = [waiting.pop(n) for n in new]
            if batch is not None and keep:
                batch = batch.reformed([inside.index(n) for n in keep], rows)
            else:
                batch = Batch(model, rows) if rows else None
            inside = [*keep, *new]
            if batch is not None:
                step = [(data.draw(st.integers(3, 90)), data.draw(st.booleans())) for _ in inside]
                batch.step([token for token, _ in step], [write for _, write in step])
                for n, one in zip(inside, step, strict=True):
                    told[n].append(one)
        done |= {n: batch.row(place) for place, n in enumerate(inside)}
        for n, row in done.items():
            alone = fed(model, IDS[n])
            for token, write in told[n]:
                alone, _ = feed(model, alone, [Piece((token,), write)])
            assert same(row, alone)


@mechanism
def test_a_rewound_row_has_its_earlier_carry(mechanism: str) -> None:
    model, (first, second, third, _) = model_of(mechanism), IDS
    with torch.inference_mode():
        early = fed(model, first)
        kept = replace(early)
        late, _ = feed(model, early, [Piece(second, True)])
        back = rewound(late, kept)
        assert back is not None
        assert same(back, fed(model, first))
        again, _ = feed(model, back, [Piece(third, True)])
        assert same(again, fed(model, first, third))


@torch.inference_mode()
def test_the_carry_of_another_row_would_be_seen() -> None:
    """So the tests above can fail: a carry that belongs to another row changes what is written."""
    model = model_of("gated")
    own, other = fed(model, IDS[0]), fed(model, IDS[1])
    wrong, _ = feed(model, replace(own, carry=other.carry), [Piece((5,), True)])
    assert not same(wrong, feed(model, fed(model, IDS[0]), [Piece((5,), True)])[0])


class TestBadRows:
    @pytest.fixture
    def rows(self) -> tuple[Row, Row, Row]:
        """Of the model, of one with more heads, and of one whose keys see no token before."""
        models = (model_of("gated"), model_of("gated", num_state_heads=3), model_of("published"))
        ours, wider, plain = (fed(model, IDS[0]) for model in models)
        return ours, wider, plain

    def fails(self, model: DeltaMemModel, row: Row, words: str) -> None:
        with pytest.raises(StateError, match=words):
            feed(model, row, [Piece((5,), True)])
        with pytest.raises(StateError, match=words):
            Batch(model, [row]).step([5], [True])

    def test_a_carry_of_another_adapter(self, rows: tuple[Row, Row, Row]) -> None:
        ours, wider, plain = rows
        self.fails(model_of("gated"), replace(ours, carry=wider.carry), r"2, 12\], expected .*2, 8\].* another adapter")
        self.fails(model_of("published"), replace(plain, carry=ours.carry), "keys don't see the token before")

    def test_a_warm_cache_without_its_carry(self, rows: tuple[Row, Row, Row]) -> None:
        self.fails(model_of("gated"), replace(rows[0], carry=None), "9 tokens are cached, but their carry is missing")

    def test_rows_of_different_adapters_do_not_decode_together(self, rows: tuple[Row, Row, Row]) -> None:
        ours = rows[0]
        for carry in (None, rows[1].carry):
            with pytest.raises(StateError, match="cannot decode together"):
                Batch(model_of("gated"), [ours, replace(ours, carry=carry)])

