import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.evaluate.intervals import bootstrap, wilson


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(found: tuple[int, int]) -> None:
    right, total = found
    low, high = wilson(right, total)
    assert 0 <= low <= right / total + 1e-12
    assert right / total - 1e-12 <= high <= 1


def test_wilson_as_published() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_bootstrap_lies_within_the_values(values: list[float]) -> None:
    low, high = bootstrap(values, draws=50)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_bootstrap_as_the_normal_approximation_has_it() -> None:
    low, high = bootstrap([0.0, 1.0] * 200)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.006)
