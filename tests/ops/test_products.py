"""The compiled products against torch's: any sizes, int8 rows and float32 ones, one thread and several."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.ops.products import FEW_ROWS, NO_SCALE, SMALL, int8_linear, multiply, quantize_rows


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(m=st.integers(1, FEW_ROWS + 5), n=st.integers(1, 70), k=st.integers(1, 90))
@settings(max_examples=40)
def test_int8_rows_multiply_as_the_wide_ones_do(m: int, n: int, k: int) -> None:
    x, (weight, scale) = drawn(m, k), quantize_rows(drawn(n, k, seed=1))
    wide = weight.float() * scale.unsqueeze(1)
    torch.testing.assert_close(int8_linear(x, weight, scale), x @ wide.t(), atol=1e-4, rtol=1e-4)


@given(m=st.integers(1, 9), n=st.integers(1, 70), k=st.integers(1, 90))
@settings(max_examples=40)
def test_float32_rows_multiply_as_torch_multiplies(m: int, n: int, k: int) -> None:
    x, weight, out = drawn(m, k), drawn(n, k, seed=1), torch.full((m, n), float("nan"))
    multiply(x.numpy(), weight.numpy(), NO_SCALE, out.numpy())
    torch.testing.assert_close(out, x @ weight.t(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("m", [1, 3, 8])
@pytest.mark.usefixtures("two_threads")
def test_several_threads_give_what_one_gives(m: int) -> None:
    n = SMALL // 64 + 33  # large enough to be shared out, and no multiple of anything
    x, (weight, scale) = drawn(m, 64), quantize_rows(drawn(n, 64, seed=1))
    shared = int8_linear(x, weight, scale)
    torch.set_num_threads(1)
    assert torch.equal(shared, int8_linear(x, weight, scale))


def test_more_weights_than_fit_into_a_block_are_all_multiplied() -> None:
    x, (weight, scale) = drawn(FEW_ROWS + 1, 1024), quantize_rows(drawn(1500, 1024, seed=1))
    wide = weight.float() * scale.unsqueeze(1)
    torch.testing.assert_close(int8_linear(x, weight, scale), x @ wide.t(), atol=1e-3, rtol=1e-4)


def test_no_weight_is_off_by_more_than_half_a_step() -> None:
    weight = drawn(20, 50)
    weight[3] = 0.0
    rounded, scale = quantize_rows(weight)
    assert ((rounded.float() * scale.unsqueeze(1) - weight).abs() <= 0.501 * scale.unsqueeze(1)).all()
    assert (rounded[3] == 0).all()


def test_what_does_not_fit_is_refused() -> None:
    x, (weight, scale) = drawn(2, 5), quantize_rows(drawn(3, 4))
    with pytest.raises(ValueError, match=r"\[2, 5\], \[3, 4\] and \[3\], expected"):
        int8_linear(x, weight, scale)
    with pytest.raises(ValueError, match="expected"):
        int8_linear(x[:, :4], weight, scale[:2])
    with pytest.raises(TypeError, match="float64"):
        int8_linear(x[:, :4].double(), weight, scale)
    with pytest.raises(TypeError, match="expected float32, int8"):
        int8_linear(x[:, :4], weight.int(), scale)
