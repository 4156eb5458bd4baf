"""NB-LoRA: what the paper says about it, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.nb_lora import NBLoRALinear, Norm, attach

from .parity import LLAMA_7B, ROBERTA_BASE, SHAPES, assert_no_drift, linear, matrices_computed, randomize, twin
from .refused import assert_refused

UNEQUAL = (3.0, 2.0, 0.5)


def site(
    d_in: int = 12,
    d_out: int = 8,
    bounds: tuple[float, ...] = UNEQUAL,
    norm: Norm = "spectral",
    spread: float = 0.5,
    seed: int = 3,
) -> NBLoRALinear:
    layer = NBLoRALinear(linear(d_in, d_out).requires_grad_(False), bounds, norm)
    randomize([p for p in layer.parameters() if p.requires_grad], spread, seed)
    return layer


def cayley(layer: NBLoRALinear) -> Tensor:
    """Q of the docstring, (d_in + d_out, r), with an explicit inverse."""
    G = torch.cat([layer.A_free.T, layer.B_free.T])
    r = layer.rank
    X, Y = G[:r], G[r:]
    eye = torch.eye(r, dtype=torch.float64)
    Z = X - X.T + Y.T @ Y
    M = torch.linalg.inv(eye + Z)
    return torch.cat([(eye - Z) @ M, -2 * Y @ M])


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_those_of_the_cayley_transform(shape: tuple[int, int]) -> None:
    layer = site(*shape)
    Q = cayley(layer)
    A, B = layer.factors()
    assert torch.allclose(torch.cat([A.T, B.T]), Q, rtol=0, atol=1e-12)
    weight = 2 * Q[shape[0] :] @ torch.diag(torch.tensor(UNEQUAL).double()) @ Q[: shape[0]].T
    assert torch.allclose(layer.delta_weight(), weight, rtol=0, atol=1e-12)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    expected = F.linear(x, layer.base.weight + weight, layer.base.bias)
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 8), (12, 1)])
def test_stack_is_orthonormal_for_any_free_matrices(shape: tuple[int, int], spread: float) -> None:
    A, B = site(*shape, spread=spread).factors()
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(A @ A.T + B @ B.T, eye, rtol=0, atol=1e-11)


def test_half_precision_is_rounded_after_the_solve_and_not_before() -> None:
    layer = NBLoRALinear(nn.Linear(40, 30).to(torch.bfloat16), (1.0,) * 6, "spectral")
    randomize([layer.A_free, layer.B_free])
    halves = layer.factors()
    for half, full in zip(halves, layer.float().factors(), strict=True):
        assert torch.equal(half, full.to(torch.bfloat16))


@pytest.mark.parametrize("spread", [0.1, 0.5, 3.0, 1e3])
def test_every_singular_value_obeys_its_bound(spread: float) -> None:
    bounds = torch.tensor(UNEQUAL).double()
    for seed in range(20):
        values = torch.linalg.svdvals(site(spread=spread, seed=seed).delta_weight())
        assert bool((values[:3] <= bounds + 1e-12).all())
        assert values[3] < 1e-11


def test_bound_is_reached_and_not_passed() -> None:
    """The factor 2 is absorbed: the largest value seen is near s_1, not near 2 s_1."""
    largest = max(torch.linalg.matrix_norm(site(seed=s).delta_weight(), 2).item() for s in range(200))
    assert 2.9 < largest <= 3.0


def test_singular_values_are_sines_of_twice_the_angle_between_the_factors() -> None:
    layer = site(bounds=(0.7, 0.7, 0.7))
    A, _ = layer.factors()
    theta = torch.acos(torch.linalg.svdvals(A))
    expected = (0.7 * torch.sin(2 * theta)).sort(descending=True).values
    assert torch.allclose(torch.linalg.svdvals(layer.delta_weight())[:3], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_change_within_the_bounds_is_reached(shape: tuple[int, int]) -> None:
    d_in, d_out = shape
    values = torch.tensor([0.95, 0.4, 0.1], dtype=torch.float64)
    P = torch.linalg.qr(torch.randn(d_out, 3, dtype=torch.float64)).Q
    R = torch.linalg.qr(torch.randn(d_in, 3, dtype=torch.float64)).Q
    target = P @ torch.diag(values) @ R.T
    theta = torch.asin(values) / 2
    Q = torch.cat([R * torch.cos(theta), P * torch.sin(theta)])  # [A^T; B^T] for S = I
    eye = torch.eye(3, dtype=torch.float64)
    M = (eye + Q[:3]) / 2  # (I - Z) M = 2 M - I is the top block
    Y = -Q[3:] @ torch.linalg.inv(M) / 2
    Z = torch.linalg.inv(M) - eye
    G = torch.cat([(Z - Y.T @ Y) / 2, Y])
    layer = site(*shape, bounds=(1.0, 1.0, 1.0))
    with torch.no_grad():
        layer.A_free.copy_(G[:d_in].T)
        layer.B_free.copy_(G[d_in:].T)
    assert torch.allclose(layer.delta_weight(), target, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_start_is_the_base_model_bit_for_bit_for_any_free_a(dtype: torch.dtype) -> None:
    model = pretrained("decoder").to(dtype)
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model, rank=3)
    assert torch.equal(model(batch), before)
    for layer in adapter.sites().values():
        assert isinstance(layer, NBLoRALinear)
        assert 0.5 * 32**-0.5 < layer.A_free.abs().max() <= 32**-0.5 + 1e-3
    randomize([p for name, p in adapter.named_parameters() if name.endswith("A_free")])
    assert torch.equal(model(batch), before)


def test_zero_free_matrices_are_the_first_unit_vectors() -> None:
    layer = site()
    with torch.no_grad():
        layer.A_free.zero_()
        layer.B_free.zero_()
    A, B = layer.factors()
    assert torch.equal(A, torch.eye(3, 12, dtype=torch.float64))
    assert not B.any()


@pytest.mark.parametrize("norm", ["spectral", "nuclear"])
def test_gradients_are_right(norm: Norm) -> None:
    layer = site(bounds=(2.0, 2.0, 2.0), norm=norm)
    x = torch.randn(2, 12, dtype=torch.float64)
    names = [name for name, p in layer.named_parameters() if p.requires_grad]
    values = tuple(getattr(layer, name).detach().clone().requires_grad_() for name in names)

    def call(*tensors: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, values)


def test_no_learning_rate_pushes_the_change_past_its_bound() -> None:
    model = pretrained("decoder").double()
    adapter = attach(model, rank=3, bound=0.2)
    adapter.fit([model.batch(i) for i in range(6)], learning_rate=100.0)
    largest = 0.0
    for layer in adapter.sites().values():
        assert isinstance(layer, NBLoRALinear)
        largest = max(largest, torch.linalg.matrix_norm(layer.delta_weight(), 2).item())
    assert 0.0 < largest <= 0.2 + 1e-10


@pytest.mark.parametrize(("norm", "power"), [("frobenius", 2), ("nuclear", 1)])
def test_other_schatten_norms_are_bounded_with_trained_bounds(norm: Norm, power: int) -> None:
    seen = 0.0
    for seed in range(100):
        layer = site(bounds=(1.5, 1.5, 1.5), norm=norm, spread=1.0, seed=seed)
        s = layer.singular_bounds()
        assert s.pow(power).sum().item() == pytest.approx(1.5**power)
        values = torch.linalg.svdvals(layer.delta_weight())
        assert bool((values[:3] <= s.sort(descending=True).values + 1e-12).all())
        seen = max(seen, values.pow(power).sum().item() ** (1 / power))
    assert 1.0 < seen <= 1.5
    start = NBLoRALinear(linear(12, 8), (1.5, 1.5, 1.5), norm)
    assert torch.allclose(start.singular_bounds(), torch.full((3,), 1.5 / 3 ** (1 / power)).double())


def test_very_large_free_matrices_bring_the_change_back_to_zero() -> None:
    """A moves to the edge of the Cayley image as B~ grows, and B vanishes."""
    layer = site(bounds=(1.0, 1.0, 1.0))
    norms = []
    for scale in (1.0, 1e2, 1e4):
        other = twin(layer)
        with torch.no_grad():
            other.B_free.mul_(scale)
        norms.append(other.delta_weight().norm().item())
    assert norms[0] > 0.3
    assert norms[1] < 0.1 * norms[0]
    assert norms[2] < 0.02 * norms[1]


def test_change_is_linear_in_the_bounds() -> None:
    layer, doubled = site(), site(bounds=(6.0, 4.0, 1.0))
    doubled.load_state_dict(layer.state_dict())
    assert torch.allclose(doubled.delta_weight(), 2 * layer.delta_weight(), rtol=0, atol=1e-13)
    x = torch.randn(4, 12, dtype=torch.float64)
    change = layer(x) - layer.base(x)
    for c in (-1.0, 0.0, 0.5):
        layer.strength = c
        assert torch.allclose(layer(x) - layer.base(x), c * change, rtol=0, atol=1e-13)


def test_a_vanishing_bound_switches_its_direction_off() -> None:
    assert torch.linalg.matrix_rank(site(bounds=(3.0, 2.0, 0.0)).delta_weight()) == 2


def test_rank_may_be_all_inputs_and_more_than_the_outputs() -> None:
    layer = NBLoRALinear(linear(5, 3), (1.0,) * 5, "spectral")
    randomize([layer.A_free, layer.B_free])
    A, B = layer.factors()
    assert torch.allclose(A @ A.T + B @ B.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "size", "keywords", "count"),
    [
        ("encoder", ROBERTA_BASE, {"rank": 8}, 294_912),  # as LoRA
        ("encoder", ROBERTA_BASE, {"rank": 8, "norm": "nuclear"}, 294_912 + 24 * 8),
        ("decoder", LLAMA_7B, {"rank": 16}, 8_388_608),
    ],
)
def test_counts(kind: str, size: Any, keywords: dict[str, Any], count: int) -> None:
    assert attach(build(kind, size, device="meta"), **keywords).count() == count


def test_no_matrix_of_the_size_of_the_weight_is_computed() -> None:
    layer = NBLoRALinear(nn.Linear(64, 48).requires_grad_(False), (1.0, 1.0), "spectral")
    x = torch.randn(3, 64)
    shapes = matrices_computed(lambda: layer(x))
    assert (3, 48) in shapes
    assert not [shape for shape in shapes if min(shape) > 3]


@pytest.mark.parametrize(
    "claim", ["mergeable", "saves", "two-faces", "detachable", "device-dtype", "strength", "trained-tensors-learn"]
)
@pytest.mark.parametrize(
    "extra",
    [{"norm": "nuclear", "bound": 12.0}, {"norm": "frobenius", "bound": 6.0}, {"bound": (6.0, 4.0, 2.0, 1.0)}],
    ids=["nuclear", "frobenius", "unequal"],
)
def test_claims_hold_for_the_variants(claim: str, extra: dict[str, Any]) -> None:
    expected = Expected(True, True, True, "linear", {"rank": 4, "targets": ("q", "up", "down"), **extra})
    result = measure(claim, Trial(load("nb-lora"), "decoder", expected))
    assert result.status == "verified", result


def test_merging_leaves_no_drift() -> None:
    assert_no_drift(attach)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 33}, "rank is 33; .* has 32 inputs"),
        ({"bound": 0.0}, "bound is 0.0; it must be a positive number"),
        ({"bound": -1.0}, "bound is -1.0"),
        ({"rank": 2, "bound": (1.0,)}, "or rank .2. numbers that do not rise"),
        ({"rank": 2, "bound": (1.0, 2.0)}, "numbers that do not rise"),
        ({"rank": 2, "bound": (2.0, 1.0), "norm": "nuclear"}, "the nuclear norm has one bound"),
        ({"norm": "max"}, "norm is 'max'; allowed: spectral, frobenius, nuclear"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
