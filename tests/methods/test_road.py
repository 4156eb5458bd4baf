"""RoAd: what the paper says about it, checked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Size, build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.road import RotaryLinear, attach

from .parity import (
    LLAMA_7B,
    LLAMA_13B,
    ROBERTA_BASE,
    ROBERTA_LARGE,
    SHAPES,
    assert_no_drift,
    assert_same,
    copy_to,
    drift,
    in_peft,
    linear,
    matrices_computed,
    randomize,
)
from .refused import assert_refused


def site(d_in: int = 12, d_out: int = 8, variant: int = 1) -> RotaryLinear:
    layer = RotaryLinear(linear(d_in, d_out).requires_grad_(False), variant)
    randomize([layer.theta, layer.alpha])
    return layer


def matrix(layer: RotaryLinear) -> Tensor:
    """R, entry by entry from the paper's definition."""
    pairs = layer.base.out_features // 2
    entries, rows = layer.theta.shape[0], layer.theta.shape[2]
    R = torch.zeros(2 * pairs, 2 * pairs, dtype=torch.float64)
    for i in range(pairs):
        for row in range(2):
            for column in range(2):
                straight = row == column
                place = (0 if straight else entries - 1, i, row if rows == 2 else 0)
                a, t = layer.alpha[place], layer.theta[place]
                R[2 * i + row, 2 * i + column] = (
                    a * t.cos() if straight else (-a * t.sin() if row == 0 else a * t.sin())
                )
    return R


@pytest.mark.parametrize(("variant", "factor"), [(1, 1), (2, 2), (4, 4)])
def test_counts(variant: int, factor: int) -> None:
    layer = RotaryLinear(nn.Linear(16, 768), variant)
    assert layer.theta.numel() + layer.alpha.numel() == 768 * factor


@pytest.mark.parametrize(
    ("kind", "size", "total", "variant", "count", "percent"),
    [
        ("decoder", LLAMA_7B, 6_738_415_616, 1, 1_359_872, 0.02),
        ("decoder", LLAMA_7B, 6_738_415_616, 2, 2_719_744, 0.04),
        ("decoder", LLAMA_7B, 6_738_415_616, 4, 5_439_488, 0.08),
        ("decoder", LLAMA_13B, 13_015_864_320, 1, 2_129_920, 0.02),
        ("decoder", LLAMA_13B, 13_015_864_320, 2, 4_259_840, 0.03),
        ("decoder", LLAMA_13B, 13_015_864_320, 4, 8_519_680, 0.07),
        ("encoder", ROBERTA_BASE, 124_645_632, 1, 82_944, 0.07),
        ("encoder", ROBERTA_LARGE, 355_359_744, 1, 221_184, 0.06),
    ],
)
def test_counts_of_the_paper(kind: str, size: Size, total: int, variant: int, count: int, percent: float) -> None:
    assert attach(build(kind, size, device="meta"), variant=variant).count() == count
    assert round(100 * count / total, 2) == percent


@pytest.mark.parametrize(("size", "total"), [(ROBERTA_BASE, 124_645_632), (ROBERTA_LARGE, 355_359_744)])
def test_counts_of_the_paper_on_the_first_feed_forward_matrix_alone(size: Size, total: int) -> None:
    count = attach(build("encoder", size, device="meta"), targets=["up"]).count()
    assert round(100 * count / total, 2) == 0.03


@pytest.mark.parametrize("variant", [1, 2, 4])
def test_start_is_the_base_model_exactly(variant: int) -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model, variant=variant)
    assert torch.equal(model(batch), before)
    assert {float(p.detach().mean()) for p in adapter.parameters()} == {0.0, 1.0}


@pytest.mark.parametrize("variant", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_is_turned_by_the_paper_s_matrix_bias_included(shape: tuple[int, int], variant: int) -> None:
    layer = site(*shape, variant)
    R = matrix(layer)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    assert torch.allclose(layer(x), layer.base(x) @ R.T, rtol=0, atol=1e-13)
    merged = layer.merged()
    assert torch.allclose(merged["weight"], R @ layer.base.weight, rtol=0, atol=1e-13)
    assert torch.allclose(merged["bias"], R @ layer.base.bias, rtol=0, atol=1e-13)
    assert (merged["bias"] - layer.base.bias).abs().max() > 0.01


def test_values_shared_in_a_variant_make_the_smaller_one() -> None:
    one, two, four = site(variant=1), site(variant=2), site(variant=4)
    with torch.no_grad():
        for name in ("theta", "alpha"):
            getattr(two, name).copy_(getattr(one, name).expand(-1, -1, 2))
            getattr(four, name).copy_(getattr(one, name).expand(2, -1, 2))
    assert torch.equal(matrix(one), matrix(two))
    assert torch.equal(matrix(one), matrix(four))


def test_without_stretch_output_lengths_are_kept_and_angles_of_neurons_are_not() -> None:
    layer = site()
    with torch.no_grad():
        layer.alpha.fill_(1.0)
    W0, W = layer.base.weight, layer.merged()["weight"]
    assert torch.allclose(W.T @ W, W0.T @ W0, rtol=0, atol=1e-13)
    assert not torch.allclose(W @ W.T, W0 @ W0.T, atol=1e-2)


def test_variants_2_and_4_are_no_rotations_and_can_be_singular() -> None:
    for variant in (2, 4):
        layer = site(variant=variant)
        with torch.no_grad():
            layer.alpha.fill_(1.0)
            layer.theta.zero_()
            layer.theta[-1, 0, 0] = math.pi / 2
            layer.theta[0, 0, 0] = math.pi / 2  # first row (0, -1); the second stays (0, 1)
        R = matrix(layer)
        assert abs(torch.linalg.det(R[:2, :2]).item()) < 1e-12
        assert not torch.allclose(R @ R.T, torch.eye(8, dtype=torch.float64), atol=0.5)
    one = site()
    assert torch.allclose(torch.linalg.det(one.blocks()), one.alpha.flatten().square())


def test_without_angle_it_rescales_outputs_in_tied_pairs() -> None:
    layer = site()
    with torch.no_grad():
        layer.theta.zero_()
    x = torch.randn(5, 12, dtype=torch.float64)
    factor = layer.alpha.flatten().repeat_interleave(2)
    assert torch.allclose(layer(x), layer.base(x) * factor, rtol=0, atol=1e-13)


def test_alpha_is_no_strength() -> None:
    layer = site()
    x = torch.randn(5, 12, dtype=torch.float64)
    adapted = layer(x)
    with torch.no_grad():
        layer.alpha.mul_(-1)
    assert torch.allclose(layer(x), -adapted)
    with torch.no_grad():
        layer.alpha.zero_()
    assert not layer(x).any()


def test_inverse_map_at_minus_one_and_half_the_way_at_a_half() -> None:
    layer = site()
    R = matrix(layer).detach()
    eye = torch.eye(8, dtype=torch.float64)
    for c, power in ((-1.0, torch.linalg.inv(R)), (0.0, eye), (2.0, R @ R)):
        layer.strength = c
        assert torch.allclose(layer.rotated(eye), power.T, rtol=0, atol=1e-12)
    layer.strength = 0.5
    half = layer.rotated(eye).T
    assert torch.allclose(half @ half, R, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", [1, 2, 4])
def test_strength_is_defined_for_negative_stretches(variant: int) -> None:
    layer = site(variant=variant)
    with torch.no_grad():
        layer.alpha[0, 0] *= -1
    whole = layer.rotated(torch.eye(8, dtype=torch.float64))
    layer.strength = 1.0 - 1e-12
    assert torch.allclose(layer.rotated(torch.eye(8, dtype=torch.float64)), whole, rtol=0, atol=1e-9)
    layer.strength = 0.0
    assert torch.equal(layer.rotated(torch.eye(8, dtype=torch.float64)), torch.eye(8, dtype=torch.float64))


def test_angles_on_the_diagonal_of_variant_4_never_move() -> None:
    """The derivative of cos at zero is zero, and no other entry of the matrix depends on them; nor do they in peft."""
    model = pretrained("decoder")
    adapter = attach(model, variant=4)
    adapter.fit([model.batch(i) for i in range(10)])
    for layer in adapter.sites().values():
        assert isinstance(layer, RotaryLinear)
        assert not layer.theta[0].any()
        assert bool((layer.theta[1] != 0).all())
    theirs = in_peft("RoadConfig", linear(12, 8), variant="road_4", group_size=2)
    optimizer = torch.optim.Adam([theirs.road_theta["default"], theirs.road_alpha["default"]], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        theirs(torch.randn(20, 12, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    theta = theirs.road_theta["default"].view(-1, 2, 2)
    assert not theta[:, 0].any()
    assert bool((theta[:, 1] != 0).all())


@pytest.mark.parametrize("claim", ["mergeable", "strength", "saves", "two-faces", "detachable", "device-dtype"])
@pytest.mark.parametrize("variant", [2, 4])
def test_claims_hold_for_the_variants(claim: str, variant: int) -> None:
    expected = Expected(True, True, True, "nonlinear", {"variant": variant})
    result = measure(claim, Trial(load("road"), "decoder", expected))
    assert result.status == "verified", result


def test_layers_without_bias_stay_without() -> None:
    layer = RotaryLinear(linear(12, 8, bias=False), 1)
    assert list(layer.merged()) == ["weight"]


def test_work_is_element_wise() -> None:
    layer = RotaryLinear(nn.Linear(64, 48).requires_grad_(False), 1)
    x = torch.randn(3, 64)
    assert not {(48, 48), (48, 64), (64, 48)} & matrices_computed(lambda: layer(x))


def kept_for_backward(variant: int) -> list[int]:
    """Sizes of the storages of activations that a forward pass of 64 to 48 numbers a token keeps, input left out."""
    layer = RotaryLinear(nn.Linear(64, 48).requires_grad_(False), variant)
    x = torch.randn(3, 50, 64, requires_grad=True)
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() * tensor.element_size() > 4 * 50 * 48:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    return [storage.nbytes() // 4 for place, storage in storages.items() if place not in own]


def test_backward_pass_of_variant_1_needs_the_output_of_the_layer_alone() -> None:
    assert kept_for_backward(1) == [3 * 50 * 48]
    assert kept_for_backward(2) == [3 * 50 * 48] * 2  # the element-wise form needs it in the order of h_hat too


@pytest.mark.parametrize("variant", [1, 2, 4])
def test_half_precision_is_near_single_precision(variant: int) -> None:
    layer = site(variant=variant).bfloat16()
    x = torch.randn(5, 12).bfloat16()
    turned = layer(x)
    assert turned.dtype == torch.bfloat16
    turned.sum().backward()
    assert layer.theta.grad is not None
    exact = layer.base(x).double() @ matrix(layer).T
    assert torch.allclose(turned.double(), exact, rtol=0.02, atol=0.02)


def in_pairs(layer: RotaryLinear, name: str) -> Tensor:
    """Our tensor in peft's order for groups of two: (pair, [cosine, sine,] row)."""
    return getattr(layer, name).transpose(0, 1).flatten()


@pytest.mark.parametrize("variant", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_peft_in_groups_of_two(shape: tuple[int, int], variant: int) -> None:
    ours = site(*shape, variant)
    theirs = in_peft("RoadConfig", ours.base, variant=f"road_{variant}", group_size=2)
    theta, alpha = theirs.road_theta["default"], theirs.road_alpha["default"]
    copy_to(theta, in_pairs(ours, "theta"))
    copy_to(alpha, in_pairs(ours, "alpha"))
    entries, pairs, rows = ours.theta.shape

    def back(gradient: Tensor) -> Tensor:
        return gradient.view(pairs, entries, rows).transpose(0, 1)

    assert_same(ours, theirs, [(ours.theta, theta, back), (ours.alpha, alpha, back)], shape[0])
    theirs.merge()
    assert torch.allclose(ours.merged()["weight"], theirs.base_layer.weight, rtol=0, atol=1e-12)
    assert torch.allclose(ours.merged()["bias"], theirs.base_layer.bias, rtol=0, atol=1e-12)


def test_larger_groups_of_peft_pair_other_outputs() -> None:
    ours = site()
    theirs = in_peft("RoadConfig", ours.base, variant="road_1", group_size=4)
    copy_to(theirs.road_theta["default"], ours.theta)
    copy_to(theirs.road_alpha["default"], ours.alpha)
    x = torch.randn(5, 12, dtype=torch.float64)
    assert not torch.allclose(ours(x), theirs(x), atol=1e-2)
    order = torch.tensor([0, 2, 1, 3, 4, 6, 5, 7])  # each group's halves interleaved: the same pairs again
    permuted = RotaryLinear(linear(12, 8), 1)
    with torch.no_grad():
        permuted.base.weight.copy_(ours.base.weight[order])
        permuted.base.bias.copy_(ours.base.bias[order])
        permuted.theta.copy_(ours.theta)
        permuted.alpha.copy_(ours.alpha)
    assert torch.allclose(permuted(x), theirs(x)[:, order], rtol=0, atol=1e-12)


def test_peft_refuses_outputs_that_do_not_fill_its_groups() -> None:
    with pytest.raises(ValueError, match="divisible by group_size"):
        in_peft("RoadConfig", linear(12, 8))


def test_rounding_piles_up_in_merges_of_peft_and_not_here() -> None:
    ours = site()
    theirs = in_peft("RoadConfig", ours.base, variant="road_1", group_size=2).float()
    copy_to(theirs.road_theta["default"], ours.theta)
    copy_to(theirs.road_alpha["default"], ours.alpha)
    errors = drift(theirs)
    assert 0 < errors[0] < 1e-6
    assert errors[-1] > 5 * errors[0]
    assert_no_drift(attach)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"variant": 3}, "variant is 3; allowed: 1, 2, 4"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)


def test_an_odd_number_of_outputs_is_refused() -> None:
    with pytest.raises(AdapterError, match="q has 7 outputs; RoAd turns pairs"):
        attach(nn.ModuleDict({"q": nn.Linear(4, 7)}))
