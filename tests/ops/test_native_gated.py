"""The one-call native memory against the same thing composed in plain torch."""

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_agents.config import StateUpdateMode
from deltamem_agents.ops import naive_delta_rule, native_available, native_gated_delta_rule

MODES: list[StateUpdateMode] = ["standard", "lambda_outside", "no_lambda"]
pytestmark = pytest.mark.skipif(not native_available(), reason="numba can't be imported here")


class Case:
    """Random arguments of `native_gated_delta_rule`: `inputs` are its tensors, `options` the rest."""

    def __init__(
        self,
        tokens: int,
        heads: int = 4,
        rank: int = 8,
        *,
        kinds: int = 2,
        rankwise: bool = True,
        batch: int = 2,
        gated: bool = False,
        seed: int = 0,
        **options: object,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.heads, self.rank, self.width = heads, rank, heads * rank
        self.count = self.width if rankwise else heads
        read = self.width + ((heads + self.width) if gated else 0)
        self.projected = torch.randn(batch, tokens, read + 2 * self.width + kinds * self.count, generator=generator)
        self.bias = torch.randn(kinds * self.count, generator=generator) - 1
        self.state = torch.randn(batch, heads, rank, rank, generator=generator)
        self.mask = torch.rand(batch, tokens, generator=generator) < 0.6
        self.options: dict[str, object] = {
            "state_update_mode": "standard",
            "rankwise_gates": rankwise,
            "normalize_qk": True,
            **options,
        }
        if gated:
            self.options |= {
                "gate_floor": 0.3,
                "key_shift": True,
                "read_gate_bias": torch.randn(heads, generator=generator),
                "read_gate_match": torch.randn(heads, self.width, generator=generator),
                "carry": torch.randn(batch, self.width, generator=generator),
                "valid": torch.rand(batch, tokens, generator=generator) < 0.8,
            }

    def run(self, writable: Tensor | None, *, at: slice = slice(None), **changes: object) -> tuple[Tensor, ...]:
        """What the kernel makes of some of the tokens."""
        options = self.options | changes
        options |= {"valid": valid[:, at]} if (valid := options.get("valid")) is not None else {}
        mask = None if writable is None else writable[:, at]
        found = native_gated_delta_rule(self.projected[:, at], self.bias, self.state, mask, **options)
        return tuple(x for x in found if x is not None)

    def exact(self, writable: Tensor | None) -> tuple[Tensor, ...]:
        """The same composed in plain torch, in float64."""
        options = {n: x.double() if isinstance(x, Tensor) and n != "valid" else x for n, x in self.options.items()}
        projected, bias, state = (x.double() for x in (self.projected, self.bias, self.state))
        batch, tokens, _ = projected.shape
        shape, mode = (batch, tokens, self.heads, self.rank), options["state_update_mode"]
        floor = options.get("gate_floor")
        sizes = [self.width, *([self.heads, self.width] if options.get("key_shift") else []), self.width, self.width]
        q, *gate_and_shift, k, v, raw = projected.split([*sizes, len(bias)], -1)
        after = []
        if gate_and_shift:
            before, carry = [], options["carry"]
            for t in range(tokens):
                before.append(carry)
                carry = torch.where(options["valid"][:, t, None], gate_and_shift[1][:, t], carry)
            k, after = k + torch.stack([*before, carry], 1)[:, :-1], [carry]
        if options["normalize_qk"]:
            q, k = (F.normalize(torch.tanh(x.reshape(shape)), dim=-1, eps=1e-6) for x in (q, k))
        gates = torch.sigmoid(raw + bias).unflatten(-1, (-1, self.heads, self.count // self.heads))
        beta, *free = gates.expand(-1, -1, -1, -1, self.rank).unbind(2)
        beta = ((beta - floor) / (1 - floor)).clamp_min(0) if floor else beta
        lam = torch.where(beta > 0, free[0], 1.0) if free and floor else free[0] if free else 1 - beta
        keep = torch.ones_like(lam) if mode == "no_lambda" else lam
        erase = lam * beta if mode == "lambda_outside" else beta
        on = torch.ones(batch, tokens, dtype=torch.bool) if writable is None else writable
        on = on[..., None, None]
        keep, erase, write = torch.where(on, keep, 1.0), torch.where(on, erase, 0.0), torch.where(on, beta, 0.0)
        reads, new_state = naive_delta_rule(*(x.reshape(shape) for x in (q, k, v, keep, erase, write)), state)
        if gate_and_shift:
            logits = gate_and_shift[0] + options["read_gate_bias"] + reads.flatten(2) @ options["read_gate_match"].T
            reads = reads * ((torch.sigmoid(logits) - floor) / (1 - floor)).clamp_min(0)[..., None]
        return reads.flatten(2), new_state, *after


def assert_exact(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    torch.testing.assert_close([x.double() for x in found], list(expected), rtol=tolerance, atol=tolerance)


gated = pytest.mark.parametrize("gated", [False, True], ids=["published", "gated"])


@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize("rank", [4, 6, 8])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kinds", [1, 2], ids=["coupled", "free"])
@gated
def test_fused_equals_composition(heads: int, rank: int, mode: StateUpdateMode, kinds: int, gated: bool) -> None:
    options = itertools.product([True, False], [True, False], [True, False], [1, 77, 130])
    for rankwise, normalize, masked, tokens in options:
        changes = {"state_update_mode": mode, "normalize_qk": normalize}
        case = Case(tokens, heads, rank, kinds=kinds, rankwise=rankwise, gated=gated, **changes)
        if not normalize:  # long keys make the recurrence itself blow up
            case.projected *= rank**-0.5 / (2 if gated else 1)
        writable = case.mask if masked else None
        inputs = case.projected, case.bias, case.state, case.mask, *(x for x in case.options.values() if x is not None)
        before = copy.deepcopy(inputs)
        assert_exact(case.run(writable), case.exact(writable), 3e-5)
        for one, other in zip(inputs, before, strict=True):
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("tokens", [0, 1, 70])
@pytest.mark.parametrize("normalize", [True, False])
@gated
def test_fused_without_writes_returns_the_same_state(tokens: int, normalize: bool, gated: bool) -> None:
    case = Case(tokens, gated=gated, normalize_qk=normalize)
    before, nothing = case.state.clone(), torch.zeros_like(case.mask)
    reads, same, *after = case.run(case.mask, writes=False)
    assert same is case.state
    assert torch.equal(same, before)
    assert_exact((reads, same, *after), case.exact(nothing), 1e-5)
    masked_reads, unchanged, *again = case.run(nothing)
    assert torch.equal(masked_reads, reads)
    assert torch.equal(unchanged, case.state)
    assert all(torch.equal(a, b) for a, b in zip(after, again, strict=True))
    short = case.projected.shape[-1] - 2 * case.width - 2 * case.count
    case.projected = case.projected[..., :short]  # what only writes need may be missing
    assert torch.equal(case.run(None, writes=False)[0], reads)


@pytest.mark.parametrize("split", [0, 1, 64, 100, 130])
@gated
def test_fused_split_equals_whole_bit_for_bit(split: int, gated: bool) -> None:
    case = Case(130, gated=gated)
    whole, *last = case.run(case.mask)
    reads = []
    for at in (slice(None, split), slice(split, None)):
        read, case.state, *after = case.run(case.mask, at=at)
        case.options |= {"carry": after[0]} if gated else {}
        reads.append(read)
    assert torch.equal(torch.cat(reads, 1), whole)
    assert all(torch.equal(a, b) for a, b in zip((case.state, *after), last, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kinds", [1, 2], ids=["coupled", "free"])
def test_fused_leaves_the_state_alone_where_gates_are_closed(mode: StateUpdateMode, kinds: int) -> None:
    case = Case(70, kinds=kinds, gated=True, state_update_mode=mode)
    case.bias[: case.count] = -30.0
    assert torch.equal(case.run(None)[1], case.state)
    case.options["read_gate_bias"] = torch.full((case.heads,), -300.0)
    assert not case.run(None)[0].any()


def test_fused_takes_strided_tensors() -> None:
    case = Case(9, gated=True)
    expected = case.run(case.mask)
    for name, x in [*vars(case).items(), *case.options.items()]:
        if isinstance(x, Tensor):
            held = case.options if name in case.options else vars(case)
            held[name] = torch.stack([x, x], -1)[..., 0]
    assert not case.options["carry"].is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(case.run(case.mask), expected, strict=True))
    case.options["carry"] = case.options["carry"].T.contiguous().T
    assert all(torch.equal(a, b) for a, b in zip(case.run(case.mask), expected, strict=True))


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-4, 30.0, 1e30])
@gated
def test_fused_is_exact_for_tiny_and_huge_projections(scale: float, gated: bool) -> None:
    case = Case(40, 2, gated=gated)
    v = slice(-16 - 2 * 16, -2 * 16)
    values = case.projected[..., v].clone()
    case.projected *= scale
    case.projected[..., v] = values
    if gated:
        case.options["carry"] = case.options["carry"] * scale
    assert_exact(case.run(case.mask), case.exact(case.mask), 1e-5)


PARTS = {"q": 16, "gate": 2, "shift": 16, "k": 16, "v": 16, "beta": 16, "lambda": 16}


@pytest.mark.parametrize("part", PARTS)
@gated
def test_fused_lets_nan_through(part: str, gated: bool) -> None:
    parts = {n: size for n, size in PARTS.items() if gated or n not in ("gate", "shift")}
    if part not in parts:
        return
    case = Case(20, 2, gated=gated, batch=1)
    if gated:  # wide open, so that what follows shows
        case.options |= {"valid": None, "read_gate_bias": torch.full((2,), 9.0), "read_gate_match": None}
        case.projected[..., -32:-16] += 9.0
    start = sum(parts[n] for n in list(parts)[: list(parts).index(part)])
    case.projected[:, 5, start : start + parts[part]] = torch.nan
    reads, new_state, *_ = case.run(None)
    assert reads[:, :5].isfinite().all()
    first = {"q": 5, "gate": 5, "shift": 7}.get(part, 6)  # the first token that reads it
    assert reads[:, first].isnan().all()
    assert reads[:, 5:first].isfinite().all()
    assert new_state.isnan().all() == (part not in ("q", "gate"))


@gated
def test_fused_keeps_nan_of_padding_out_of_the_state(gated: bool) -> None:
    case = Case(20, 2, gated=gated, batch=1)
    case.mask = torch.arange(20)[None] >= 5
    case.options |= {"valid": case.mask} if gated else {}
    _, *clean = case.run(case.mask, at=slice(5, None))
    case.projected[:, :5] = torch.nan
    reads, *found = case.run(case.mask)
    assert all(torch.equal(a, b) for a, b in zip(found, clean, strict=True))
    assert reads[:, 5:].isfinite().all()


@gated
def test_native_runs_in_threads(gated: bool) -> None:
    cases = [Case(50, gated=gated, seed=seed) for seed in range(16)]
    expected = [case.run(case.mask) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda case: case.run(case.mask), cases))
    assert all(torch.equal(x, y) for a, b in zip(found, expected, strict=True) for x, y in zip(a, b, strict=True))


def test_fused_refuses_what_does_not_fit() -> None:
    case = Case(3)
    projected, bias, state, mask, options = case.projected, case.bias, case.state, case.mask, case.options
    with pytest.raises(ValueError, match=r"projected has shape \[2, 3, 128\], expected \[2, 3, 160\]"):
        native_gated_delta_rule(projected[..., :128], bias, state, None, **options)
    with pytest.raises(ValueError, match="gate_bias has shape"):
        native_gated_delta_rule(projected, bias, state, None, **(options | {"rankwise_gates": False}))
    with pytest.raises(ValueError, match="writable has shape"):
        native_gated_delta_rule(projected, bias, state, mask[:, :2], **options)
    with pytest.raises(TypeError, match="writable is"):
        native_gated_delta_rule(projected, bias, state, mask.float(), **options)
    with pytest.raises(RuntimeError, match="projected requires a gradient"):
        native_gated_delta_rule(projected.requires_grad_(), bias, state, mask, **options)
    with torch.no_grad():  # a trained adapter's parameters require gradients, and that is fine here
        native_gated_delta_rule(projected, bias.requires_grad_(), state, mask, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"carry": torch.zeros(1, 32)}, r"carry has shape \[1, 32\], expected \[2, 32\]"),
        ({"carry": torch.zeros(2, 32).double()}, "carry is torch.float64"),
        ({"carry": torch.zeros(2, 32).requires_grad_()}, "carry requires a gradient"),
        ({"valid": torch.ones(2, 4, dtype=torch.bool)}, r"valid has shape \[2, 4\], expected \[2, 3\]"),
        ({"valid": torch.ones(2, 3)}, "valid is torch.float32"),
        ({"read_gate_bias": torch.zeros(3)}, "projected has shape|read_gate_bias has shape"),
        ({"read_gate_match": torch.zeros(4, 31)}, r"read_gate_match has shape \[4, 31\], expected \[4, 32\]"),
        ({"key_shift": False}, r"projected has shape \[2, 3, 196\], expected \[2, 3, 164\]"),
        ({"key_shift": False, "read_gate_bias": None}, r"projected has shape \[2, 3, 196\], expected \[2, 3, 160\]"),
    ],
)
def test_fused_refuses_gates_and_carries_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    case = Case(3, gated=True)
    options = case.options | changes
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        native_gated_delta_rule(case.projected, case.bias, case.state, case.mask, **options)
