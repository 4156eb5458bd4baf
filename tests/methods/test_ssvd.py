"""SSVD: what the paper and its code say about it, checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.ssvd import Constraint, SSVDLinear, attach
from reference_impls.reparameterized.svft import decompose

from .parity import SHAPES, assert_no_drift, linear, matrices_computed, randomize
from .refused import assert_refused

CONSTRAINTS: list[Constraint] = ["approximate", "strict", "none"]


def site(
    d_in: int = 12, d_out: int = 8, k: int = 4, constraint: Constraint = "approximate", *, gate: bool = False
) -> SSVDLinear:
    layer = SSVDLinear(linear(d_in, d_out).requires_grad_(False), k, constraint, gate, False)
    randomize([p for p in layer.parameters() if p.requires_grad], 0.2)
    return layer


def skew(layer: SSVDLinear) -> Tensor:
    """K, entry by entry."""
    K = torch.zeros(layer.k, layer.k, dtype=torch.float64)
    entries = iter(layer.turn.detach())
    for i in range(layer.k):
        for j in range(i + 1, layer.k):
            K[i, j] = next(entries)
            K[j, i] = -K[i, j]
    return K


def rotation(layer: SSVDLinear) -> Tensor:
    """G_k of equations 10 and 13."""
    eye = torch.eye(layer.k, dtype=torch.float64)
    if layer.constraint == "none":
        return eye + layer.turn
    K = skew(layer)
    return eye - 2 * K if layer.constraint == "approximate" else (eye - K) @ torch.linalg.inv(eye + K)


def defined(layer: SSVDLinear) -> Tensor:
    """W' of equation 8, from all singular vectors."""
    n = min(layer.base.weight.shape)
    U, S, Vt = decompose(layer.base.weight, n)
    G = torch.eye(n, dtype=torch.float64)
    G[: layer.k, : layer.k] = rotation(layer)
    dS = torch.zeros(n, dtype=torch.float64)
    dS[: layer.k] = layer.ds if layer.g is None else layer.ds / (1 + torch.exp(-layer.g))
    return U @ torch.diag(S + dS) @ G @ Vt


def trained(layer: SSVDLinear) -> int:
    return sum(p.numel() for p in layer.parameters() if p.requires_grad)


@pytest.mark.parametrize("k", [2, 4, 7])
def test_counts_of_one_layer(k: int) -> None:
    assert trained(site(k=k)) == trained(site(k=k, constraint="strict")) == k * (k + 1) // 2
    assert trained(site(k=k, constraint="none")) == k * k + k == 2 * trained(site(k=k))  # table VI: twice
    assert trained(site(k=k, gate=True)) == k * (k + 1) // 2 + 1


@pytest.mark.parametrize(("portion", "k_attention", "k_feedforward"), [(0.4, 12, 12), (0.25, 8, 8), (1.0, 32, 32)])
def test_portion_of_the_singular_values(portion: float, k_attention: int, k_feedforward: int) -> None:
    adapter = attach(build("encoder-decoder"), portion=portion)
    sizes = {path.rpartition(".")[2]: site.k for path, site in adapter.sites().items() if isinstance(site, SSVDLinear)}
    assert sizes["q"] == k_attention
    assert sizes["up"] == sizes["down"] == k_feedforward
    assert len(adapter.sites()) == 2 * 6 + 3 * 10  # cross attention too


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_as_equation_8_says(shape: tuple[int, int], constraint: Constraint) -> None:
    layer = site(*shape, constraint=constraint)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    weight = defined(layer)
    assert (weight - layer.base.weight).norm() > 0.1
    assert torch.allclose(layer(x), F.linear(x, weight, layer.base.bias), rtol=0, atol=1e-12)
    assert torch.allclose(layer.merged()["weight"], weight, rtol=0, atol=1e-13)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_gradients_are_those_of_equation_8(constraint: Constraint) -> None:
    layer = site(constraint=constraint)
    x = torch.randn(5, 12, dtype=torch.float64)
    fast = torch.autograd.grad((layer(x) ** 2).sum(), [layer.turn, layer.ds])
    merged = F.linear(x, layer.merged()["weight"], layer.base.bias)
    slow = torch.autograd.grad((merged**2).sum(), [layer.turn, layer.ds])
    for a, b in zip(fast, slow, strict=True):
        assert a.abs().max() > 1e-3
        assert torch.allclose(a, b, rtol=0, atol=1e-11)
    turn = layer.turn.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: functional_call(layer, {"turn": t}, (x,)), (turn,))  # by differences


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_start_is_the_base_model_bit_for_bit(dtype: torch.dtype, constraint: Constraint) -> None:
    model = pretrained("decoder").to(dtype)
    batch = model.batch(0)
    before = model(batch)
    attach(model, constraint=constraint)
    assert torch.equal(model(batch), before)


def test_official_start_is_not_the_base_model() -> None:
    layer = SSVDLinear(linear(60, 40), 30, "approximate", True, False)
    assert layer.g is not None
    assert layer.g.item() == 0
    bound = math.sqrt(6 / 30)
    assert 0.7 * bound < layer.ds.abs().max() <= bound
    change = layer.U.T @ (layer.merged()["weight"] - layer.base.weight) @ layer.Vt.T
    assert torch.allclose(change, torch.diag(layer.ds / 2), rtol=0, atol=1e-12)
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    attach(model, gate=True)
    assert (model(batch) - before).norm() > 1e-3 * before.norm()


def test_strict_rotation_is_orthogonal_and_keeps_the_singular_values() -> None:
    layer = site(constraint="strict")
    G = layer.rotation_change() + torch.eye(4, dtype=torch.float64)
    assert torch.allclose(G.T @ G, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-14)
    with torch.no_grad():
        layer.ds.zero_()
    before, after = (torch.linalg.svdvals(w) for w in (layer.base.weight, layer.merged()["weight"]))
    assert torch.allclose(before, after, rtol=0, atol=1e-13)
    assert not torch.allclose(layer.base.weight, layer.merged()["weight"], atol=1e-2)


def test_default_is_orthogonal_up_to_four_times_the_square_of_k() -> None:
    layer = site()
    G, K = layer.rotation_change() + torch.eye(4, dtype=torch.float64), skew(layer)
    departs = (G.T @ G - torch.eye(4, dtype=torch.float64)).norm().item()
    assert departs == pytest.approx(4 * (K @ K).norm().item(), rel=1e-12)
    assert departs > 0.1


def test_default_is_the_strict_rotation_to_first_order() -> None:
    layer, strict = site(), site(constraint="strict")
    errors = []
    for scale in (1e-2, 1e-3):
        with torch.no_grad():
            strict.turn.copy_(layer.turn * scale)
        approximate = -2 * scale * skew(layer)
        errors.append((strict.rotation_change() - approximate).norm().item())
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_side_stays_and_leading_input_directions_mix_among_themselves(
    shape: tuple[int, int], constraint: Constraint
) -> None:
    """Of every layer, whatever its shape; the official code turns the output side where there are fewer outputs."""
    layer = site(*shape, constraint=constraint)
    n = min(shape)
    U, S, Vt = decompose(layer.base.weight, n)
    change = U.T @ (layer.merged()["weight"] - layer.base.weight) @ Vt.T
    assert change[:4, :4].abs().max() > 1e-2
    assert change[4:].abs().max() < 1e-13
    assert change[:, 4:].abs().max() < 1e-13
    whole = layer.merged()["weight"]
    for i in range(4):  # row i of U^T W' is (S_i + ds_i) times row i of G_k V_k^T
        expected = (S[i] + layer.ds[i]) * rotation(layer)[i] @ Vt[:4]
        assert torch.allclose(U[:, i] @ whole, expected, rtol=0, atol=1e-13)
    if shape[0] > n:  # where the row space could change, it does not leave the span of V
        assert torch.linalg.matrix_rank(torch.cat([layer.base.weight, whole])) == n


def test_shifts_are_not_constrained() -> None:
    layer = site()
    with torch.no_grad():
        layer.turn.zero_()
        layer.ds.copy_(-layer.S - torch.arange(4.0))
    middle = (layer.U.T @ layer.merged()["weight"] @ layer.Vt.T).diagonal()
    assert torch.allclose(middle, -torch.arange(4.0).double(), rtol=0, atol=1e-13)


def figures(layer: SSVDLinear) -> tuple[float, float]:
    """How far the change is from antisymmetric and from linear, relative to its size."""
    change = {}
    for c in (-1.0, 0.0, 0.5, 1.0):
        layer.strength = c
        change[c] = layer.merged()["weight"] - layer.base.weight
    assert change[0.0].abs().max() < 1e-13
    size = change[1.0].norm()
    return ((change[-1.0] + change[1.0]).norm() / size).item(), ((change[0.5] - change[1.0] / 2).norm() / size).item()


def test_strength_is_linear_in_each_part_and_not_in_both() -> None:
    turning, shifting, both, strict = site(), site(), site(), site(constraint="strict")
    free = site(constraint="none")
    with torch.no_grad():
        turning.ds.zero_()
        free.ds.zero_()
        shifting.turn.zero_()
    assert max(figures(turning)) < 1e-13
    assert max(figures(free)) < 1e-13
    assert max(figures(shifting)) < 1e-13
    assert 1e-3 < min(figures(both)) < max(figures(both)) < 1.0
    with torch.no_grad():
        strict.ds.zero_()
        strict.turn.mul_(3)
    assert figures(strict)[0] > 0.1


def test_strict_rotation_at_minus_one_is_the_inverse() -> None:
    layer = site(constraint="strict")
    eye = torch.eye(4, dtype=torch.float64)
    forward = layer.rotation_change() + eye
    layer.strength = -1.0
    assert torch.allclose(forward @ (layer.rotation_change() + eye), eye, rtol=0, atol=1e-14)


def test_saved_bases_are_taken_over(tmp_path: Path) -> None:
    model, other = nn.ModuleDict({"q": linear(6, 6)}), nn.ModuleDict({"q": linear(6, 6)})
    other.load_state_dict(model.state_dict())
    adapter = attach(model, portion=0.5, save_bases=True)
    layer = adapter.sites()["q"]
    assert isinstance(layer, SSVDLinear)
    layer.U[:, 0].neg_()  # another sign of one pair: the same weight, another meaning of K
    layer.Vt[0].neg_()
    randomize([p for p in adapter.parameters()])
    adapter.save(tmp_path / "learned")
    attach(other, portion=0.5, save_bases=True).load(tmp_path / "learned")
    x = torch.randn(4, 6, dtype=torch.float64)
    assert torch.equal(model["q"](x), other["q"](x))
    assert all(name.endswith((".turn", ".ds")) for name in attach(pretrained("decoder")).state_dict())


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_no_matrix_of_the_size_of_the_weight_is_computed(constraint: Constraint) -> None:
    layer = SSVDLinear(nn.Linear(64, 48).requires_grad_(False), 4, constraint, False, False)
    x = torch.randn(3, 64)
    shapes = matrices_computed(lambda: layer(x))
    assert (3, 48) in shapes
    assert not {(48, 64), (64, 48), (48, 48), (64, 64)} & shapes


@pytest.mark.parametrize("claim", ["mergeable", "saves", "two-faces", "detachable", "device-dtype", "strength"])
@pytest.mark.parametrize(
    "extra",
    [{"constraint": "strict"}, {"constraint": "none"}, {"gate": True}],
    ids=["strict", "none", "gate"],
)
def test_claims_hold_for_the_variants(claim: str, extra: dict[str, Any]) -> None:
    result = measure(claim, Trial(load("ssvd"), "decoder", Expected(None, True, True, "nonlinear", extra)))
    assert result.status == "verified", result


def test_merging_leaves_no_drift() -> None:
    assert_no_drift(attach)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"constraint": "orthogonal"}, "constraint is 'orthogonal'; allowed: approximate, strict, none"),
        ({"portion": 0.0}, "portion is 0.0; it must be above 0 and at most 1"),
        ({"portion": 1.5}, "portion is 1.5"),
        ({"portion": 0.04}, "leaves 1 components of .*; at least 2 are needed"),
        ({"portion": 0.01, "constraint": "none"}, "leaves 0 components of .*; at least 1 are needed"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
