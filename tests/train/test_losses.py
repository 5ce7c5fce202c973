import math

import pytest
import torch
from torch import Tensor

from deltamem_agents.train import losses

B, A, V = 3, 4, 7
TARGETS = torch.tensor([[-100, 1, 2, -100], [3, 4, 5, -100], [-100, -100, 6, -100]])
ON = TARGETS != -100


def logits(seed: int) -> Tensor:
    return torch.randn(B, A, V, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def probabilities(x: Tensor, b: int, a: int) -> list[float]:
    raw = [math.exp(v) for v in x[b, a].tolist()]
    return [v / sum(raw) for v in raw]


def places() -> list[tuple[int, int]]:
    return [(b, a) for b in range(B) for a in range(A) if TARGETS[b, a] != -100]


def test_cross_entropy_and_log_probs_are_the_plain_formulas() -> None:
    x = logits(0)
    lp = {(b, a): math.log(probabilities(x, b, a)[TARGETS[b, a]]) for b, a in places()}
    assert losses.answer_cross_entropy(x, TARGETS).item() == pytest.approx(-sum(lp.values()) / len(lp), rel=1e-5)
    rows = [[v for (b, _), v in lp.items() if b == row] for row in range(B)]
    expected = torch.tensor([sum(row) / len(row) for row in rows])
    torch.testing.assert_close(losses.answer_log_probs(x, TARGETS), expected)


def test_overlap_is_the_mean_squared_cosine_of_keys_of_different_facts_of_one_memory() -> None:
    keys = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    facts = torch.tensor([[1, 0, 2, 1], [3, 3, 0, 0]])  # the second memory is told one
    expected = [
        float(torch.dot(keys[0, t, n], keys[0, s, n]) / keys[0, t, n].norm() / keys[0, s, n].norm()) ** 2
        for t, s in ((0, 2), (3, 2))
        for n in range(3)
    ]
    row, token = facts.nonzero(as_tuple=True)
    whose = row, facts[row, token]
    found = losses.key_overlap(keys[row, token], *whose)
    assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert losses.key_overlap(keys[row, token][3:], *(x[3:] for x in whose)).isnan()
    assert losses.key_overlap(keys[row, token][:0], *(x[:0] for x in whose)).isnan()


def test_exact_wants_every_token() -> None:
    x = torch.zeros(B, A, V)
    for b, a in places():
        x[b, a, TARGETS[b, a]] = 1.0
    x[1, 2] = 0.0
    x[1, 2, 0] = 1.0
    assert losses.exact(x, TARGETS).tolist() == [True, False, True]


def test_distillation_is_the_divergence_from_the_teachers_top() -> None:
    student, teacher = logits(0), logits(1)
    total = 0.0
    for b, a in places():
        p, q = probabilities(teacher, b, a), probabilities(student, b, a)
        top = sorted(range(V), key=lambda v: -p[v])[:3]
        total += sum(p[v] / sum(p[k] for k in top) * math.log(p[v] / sum(p[k] for k in top) / q[v]) for v in top)
    found = losses.distillation(student, teacher, ON, top_k=3)
    assert found.item() == pytest.approx(total / len(places()), rel=1e-5)
    found.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert torch.equal(student.grad.abs().sum(-1) > 0, ON)
    assert losses.distillation(student, teacher, torch.zeros_like(ON), top_k=3).item() == 0.0


def test_the_margin_pushes_own_up_and_swapped_down_until_it_is_reached() -> None:
    own, swapped = (torch.tensor(x, requires_grad=True) for x in ([-1.0, -0.1], [-1.5, -3.0]))
    loss = losses.own_beats_swapped(own, swapped, margin=1.0)
    assert loss.item() == pytest.approx((0.5 + 0.0) / 2)
    loss.backward()
    assert own.grad is not None
    assert swapped.grad is not None
    assert own.grad.tolist() == [-0.5, 0.0]
    assert swapped.grad.tolist() == [0.5, 0.0]


def test_plain_divergence_is_the_plain_formula_and_zero_where_nothing_changed() -> None:
    x, plain = logits(0), logits(1)
    total = 0.0
    for b, a in places():
        p, q = probabilities(plain, b, a), probabilities(x, b, a)
        total += sum(pv * math.log(pv / qv) for pv, qv in zip(p, q, strict=True))
    assert losses.plain_divergence(x, plain, ON).item() == pytest.approx(total / len(places()), rel=1e-5)
    assert losses.plain_divergence(x, x.detach(), ON).item() == pytest.approx(0.0, abs=1e-6)


def test_what_a_gate_costs_moves_one_that_is_all_but_open() -> None:
    raw = torch.tensor([-20.0, 0.0, 12.0], requires_grad=True)
    cost = losses.open_cost(torch.sigmoid(raw))
    assert cost.tolist() == pytest.approx([0.0, math.log(2), 12.0], abs=0.2)
    cost.sum().backward()
    assert raw.grad is not None
    assert raw.grad.tolist() == pytest.approx([0.0, 0.5, 1.0], abs=0.2)
    assert losses.open_cost(torch.ones(1)).isfinite()


def test_gate_mean_counts_only_what_is_on() -> None:
    beta = torch.tensor([[0.2, 0.4, 0.9]], requires_grad=True)
    mean = losses.gate_mean(beta, torch.tensor([[True, True, False]]))
    assert mean.item() == pytest.approx(0.3)
    mean.backward()
    assert beta.grad is not None
    assert beta.grad.tolist() == [[0.5, 0.5, 0.0]]
    assert losses.gate_mean(beta, torch.zeros(1, 3, dtype=torch.bool)).isnan()
