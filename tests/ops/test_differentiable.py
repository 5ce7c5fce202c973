import pytest
import torch
from torch import Tensor

from deltamem_agents.ops import delta_rule, differentiable_delta_rule, naive_delta_rule


def inputs(batch: int, tokens: int, heads: int, rank: int) -> list[Tensor]:
    torch.manual_seed(tokens)
    q, k, v, keep, erase, write = (torch.randn(batch, tokens, heads, rank) for _ in range(6))
    unit = [torch.nn.functional.normalize(x.tanh(), dim=-1) for x in (q, k)]
    gates = [torch.sigmoid(x + bias) for x, bias in ((keep, 3.0), (erase, -1.0), (write, -1.0))]
    return [*unit, v, *gates, torch.randn(batch, heads, rank, rank)]


@pytest.mark.parametrize("tokens", [1, 2, 7, 33])
@pytest.mark.parametrize("rank", [4, 8])
def test_outputs_and_gradients_equal_the_naive_recurrence(tokens: int, rank: int) -> None:
    given = inputs(2, tokens, 3, rank)
    weights = torch.randn(2, tokens, 3, rank), torch.randn(2, 3, rank, rank)
    results = []
    for rule in (naive_delta_rule, differentiable_delta_rule):
        leaves = [x.clone().requires_grad_() for x in given]
        reads, state = rule(*leaves)
        ((reads * weights[0]).sum() + (state * weights[1]).sum()).backward()
        results.append([reads.detach(), state.detach(), *(x.grad for x in leaves)])
    for naive, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, naive, rtol=1e-4, atol=1e-5)


def test_strided_inputs_and_gradients_are_taken_and_nothing_given_is_changed() -> None:
    packed = torch.randn(2, 5, 3, 16, requires_grad=True)
    q, k = packed[..., :8], packed[..., 8:]
    rest = inputs(2, 5, 3, 8)[2:]
    before = [x.clone() for x in rest]
    reads, state = differentiable_delta_rule(q, k, *rest)
    (reads.transpose(1, 2).sum() + state.mT.sum()).backward()
    assert packed.grad is not None
    assert packed.grad.abs().sum() > 0
    assert all(torch.equal(x, y) for x, y in zip(rest, before, strict=True))


def test_one_result_may_go_unused() -> None:
    given = [x.requires_grad_() for x in inputs(1, 4, 2, 4)]
    differentiable_delta_rule(*given)[1].sum().backward()
    q, v = given[0].grad, given[2].grad
    assert q is not None
    assert v is not None
    assert q.abs().sum() == 0  # q only reads
    assert v.abs().sum() > 0


def test_delta_rule_takes_the_compiled_path_when_gradients_are_needed() -> None:
    given = inputs(1, 6, 2, 4)
    given[1].requires_grad_()
    reads, _ = delta_rule(*given)
    assert "DifferentiableDeltaRule" in type(reads.grad_fn).__name__
