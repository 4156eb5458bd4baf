"""ETHER: what the paper and its code say about it, checked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.backbones import Size, build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.ether import ETHER, ETHERPlus, ReflectedLinear, Reflection, attach

from .parity import (
    DEBERTA_BASE,
    LLAMA_7B,
    SHAPES,
    assert_no_drift,
    linear,
    matrices_computed,
    randomize,
)
from .refused import assert_refused


def site(d_in: int = 12, d_out: int = 8, blocks: int = 1, plus: bool = False, both: bool = True) -> ReflectedLinear:
    layer = ReflectedLinear(linear(d_in, d_out).requires_grad_(False), blocks, plus, both, 0.0)
    randomize([p for p in layer.parameters() if p.requires_grad])
    return layer


def matrix(reflection: Reflection) -> Tensor:
    """H or H+ of the paper, block by block."""
    blocks = []
    for i, u in enumerate(reflection.u):
        u = u / u.norm()
        eye = torch.eye(len(u), dtype=torch.float64)
        if reflection.v is None:
            blocks.append(eye - 2 * torch.outer(u, u))
        else:
            v = reflection.v[i] / reflection.v[i].norm()
            blocks.append(eye - torch.outer(u, u) + torch.outer(v, v))
    return torch.block_diag(*blocks)


def definition(layer: ReflectedLinear) -> Tensor:
    weight = layer.base.weight @ matrix(layer.inputs)
    return weight if layer.outputs is None else matrix(layer.outputs) @ weight


def test_counts_do_not_depend_on_the_blocks() -> None:
    for blocks in (1, 2, 4):
        for plus, both, count in ((False, True, 12), (True, False, 24), (True, True, 40)):
            layer = site(12, 8, blocks, plus, both)
            assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == count


@pytest.mark.parametrize(
    ("kind", "size", "keywords", "count"),
    [
        ("decoder", LLAMA_7B, {"blocks": 32, "targets": ["q", "v"]}, 262_144),
        ("decoder", LLAMA_7B, {"blocks": 32, "targets": ["q", "v"], "plus": True}, 1_048_576),
        ("encoder", DEBERTA_BASE, {"plus": True}, 331_776),
        ("encoder", DEBERTA_BASE, {}, 82_944),  # the paper prints 0.09M
    ],
)
def test_counts_of_the_paper(kind: str, size: Size, keywords: dict[str, Any], count: int) -> None:
    assert attach(build(kind, size, device="meta"), **keywords).count() == count


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize(("plus", "both"), [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_acting_on_activations_is_the_matrix_product(
    shape: tuple[int, int], plus: bool, both: bool, blocks: int
) -> None:
    layer = site(*shape, blocks, plus, both)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    expected = x @ definition(layer).T + layer.base.bias
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-13)
    assert torch.allclose(layer.merged()["weight"], definition(layer), rtol=0, atol=1e-14)


@pytest.mark.parametrize("plus", [False, True])
def test_gradients_are_those_of_the_definition(plus: bool) -> None:
    layer = site(12, 8, 2, plus)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    g = torch.randn(5, 8, dtype=torch.float64)
    tensors = [x, *(p for p in layer.parameters() if p.requires_grad)]
    mine = torch.autograd.grad((layer(x) * g).sum(), tensors)
    theirs = torch.autograd.grad(((x @ definition(layer).T + layer.base.bias) * g).sum(), tensors)
    for a, b in zip(mine, theirs, strict=True):
        assert a.abs().max() > 1e-3
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_reflection_is_symmetric_its_own_inverse_and_at_a_fixed_distance(blocks: int) -> None:
    H, eye = matrix(site(12, 8, blocks).inputs), torch.eye(12, dtype=torch.float64)
    applied = site(12, 8, blocks)
    assert torch.allclose(applied.inputs(applied.inputs(eye, 1.0), 1.0), eye, rtol=0, atol=1e-14)
    assert torch.equal(H, H.T)
    assert torch.linalg.det(H).item() == pytest.approx((-1) ** blocks)
    assert (H - eye).norm().item() == pytest.approx(2 * math.sqrt(blocks))


@pytest.mark.parametrize("c", [-1.0, 0.01, 7.0])
def test_length_and_sign_of_a_normal_do_not_matter(c: float) -> None:
    layer = site(12, 8, 2)
    before = layer.merged()["weight"].detach().clone()
    with torch.no_grad():
        layer.inputs.u.mul_(c)
    assert torch.allclose(layer.merged()["weight"], before, rtol=0, atol=1e-13)


@pytest.mark.parametrize("blocks", [1, 2])
def test_ether_keeps_the_angles_between_neurons_and_ether_plus_does_not(blocks: int) -> None:
    for plus in (False, True):
        layer = site(12, 8, blocks, plus)
        V, W = layer.base.weight, layer.merged()["weight"]
        assert torch.allclose(W @ W.T, V @ V.T, rtol=0, atol=1e-13) != plus


def test_rank_of_the_change_is_one_and_at_most_four() -> None:
    for plus, both, rank in ((False, True, 1), (True, False, 2), (True, True, 4)):
        layer = site(12, 8, 1, plus, both)
        assert torch.linalg.matrix_rank(layer.merged()["weight"] - layer.base.weight) == rank


def test_ether_plus_has_determinant_of_the_squared_cosine_and_a_bounded_distance() -> None:
    layer = site(12, 8, 1, True)
    reflection = layer.inputs
    assert reflection.v is not None
    u, v = (n[0] / n[0].norm() for n in (reflection.u, reflection.v))
    H = matrix(reflection)
    assert torch.linalg.det(H).item() == pytest.approx((u @ v).item() ** 2)
    eye = torch.eye(12, dtype=torch.float64)
    assert (H - eye).norm().item() == pytest.approx(math.sqrt(2 - 2 * (u @ v).item() ** 2))
    with torch.no_grad():
        reflection.v[0] = v - (u @ v) * u
    assert (matrix(reflection) - eye).norm().item() == pytest.approx(math.sqrt(2))  # within the paper's bound of 2
    assert (layer.inputs(u, 1.0)).norm() < 1e-14  # singular: a merged weight cannot be solved back


def test_ether_starts_at_a_random_reflection_and_ether_plus_at_the_base_model() -> None:
    base = pretrained("decoder").double()
    batch = base.batch(0)
    expected = base(batch)
    for plus in (False, True):
        model = pretrained("decoder").double()
        adapter = attach(model, plus=plus, blocks=4)
        assert type(adapter) is (ETHERPlus if plus else ETHER)
        assert (adapter.family == "orthogonal") != plus
        assert torch.allclose(model(batch), expected, rtol=0, atol=1e-12) == plus
        for layer in adapter.sites().values():
            assert isinstance(layer, ReflectedLinear)
            for reflection in (layer.inputs, layer.outputs):
                if plus:
                    assert isinstance(reflection, Reflection)
                    assert reflection.v is not None
                    assert torch.equal(reflection.v, -reflection.u)
        assert (layer.outputs is None) != plus


@pytest.mark.parametrize("c", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_coefficient_on_the_residual_leaves_the_orthogonal_group_between(c: float) -> None:
    layer = site()
    layer.strength = c
    values = torch.linalg.eigvalsh(layer.inputs(torch.eye(12, dtype=torch.float64), c))
    expected = sorted([1.0] * 11 + [1 - 2 * c])
    assert values.tolist() == pytest.approx(expected)
    change = layer.merged()["weight"] - layer.base.weight
    layer.strength = 1.0
    assert torch.allclose(change, c * (layer.merged()["weight"] - layer.base.weight), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("both", "strength"), [(True, "nonlinear"), (False, "linear")])
@pytest.mark.parametrize("claim", ["mergeable", "strength", "two-faces", "saves", "detachable", "identity-at-init"])
def test_claims_hold_for_ether_plus(claim: str, both: bool, strength: str) -> None:
    hyperparameters = {"plus": True, "both": both, "blocks": 2, "targets": ["q", "up", "down"]}
    expected = Expected(True, True, True, strength, hyperparameters)
    result = measure(claim, Trial(load("ether"), "decoder", expected))
    assert result.status == "verified", result


@pytest.mark.parametrize("claim", ["trained-tensors-learn", "device-dtype"])
def test_ether_plus_trains_all_its_normals(claim: str) -> None:
    result = measure(claim, Trial(load("ether"), "decoder", Expected(True, True, True, "nonlinear", {"plus": True})))
    assert result.status == "verified", result


def test_ether_plus_learns_away_from_the_base_model() -> None:
    model = pretrained("decoder")
    losses = attach(model, plus=True, blocks=4).fit([model.batch(i) for i in range(40)], learning_rate=0.01)
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_dropout_acts_on_the_input_of_the_layer_in_training_alone() -> None:
    layer = site()
    layer.dropout.p = 0.5
    x = torch.ones(200, 12, dtype=torch.float64)
    torch.manual_seed(0)
    kept = layer.dropout(x)
    torch.manual_seed(0)
    assert torch.allclose(layer(x), kept @ definition(layer).T + layer.base.bias, rtol=0, atol=1e-12)
    layer.eval()
    assert torch.allclose(layer(x), x @ definition(layer).T + layer.base.bias, rtol=0, atol=1e-12)


def test_layers_without_bias_stay_without() -> None:
    for plus in (False, True):
        layer = ReflectedLinear(linear(12, 8, bias=False), 1, plus, True, 0.0)
        assert not layer(torch.zeros(2, 12, dtype=torch.float64)).any()


@pytest.mark.parametrize("plus", [False, True])
def test_no_matrix_of_a_layer_s_width_is_computed(plus: bool) -> None:
    layer = ReflectedLinear(nn.Linear(64, 48).requires_grad_(False), 4, plus, True, 0.0)
    x = torch.randn(3, 64)
    assert not {(64, 64), (48, 48), (48, 64), (64, 48)} & matrices_computed(lambda: layer(x))


@pytest.mark.parametrize(("blocks", "same"), [(1, True), (2, False), (4, False)])
def test_official_reshape_is_no_split_of_the_columns(blocks: int, same: bool) -> None:
    """Read as (n, d_out, d_in / n), block i meets all columns of the i-th group of output rows."""
    layer = site(12, 8, blocks)
    H = matrix(layer.inputs)
    size = 12 // blocks
    each = torch.stack([H[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(blocks)])
    reshaped = (layer.base.weight.reshape(blocks, 8, size) @ each).reshape(8, 12)
    groups = layer.base.weight.split(8 // blocks)
    rows = torch.cat([group @ torch.block_diag(*[h] * blocks) for group, h in zip(groups, each, strict=True)])
    assert torch.allclose(reshaped, rows, rtol=0, atol=1e-14)
    assert torch.allclose(reshaped, layer.merged()["weight"], rtol=0, atol=1e-3) == same


@pytest.mark.parametrize("plus", [False, True])
def test_merges_leave_no_drift(plus: bool) -> None:
    assert_no_drift(lambda model: attach(model, plus=plus, blocks=4))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"blocks": 0}, "blocks is 0; for .* it must be one of"),
        ({"blocks": 5}, r"blocks is 5; for .* it must be one of \[1, 2, 4, 8, 16\]"),
        ({"blocks": 32}, "blocks is 32"),  # blocks of one entry have no direction to learn
        ({"blocks": 32, "targets": ["down"], "plus": True}, "blocks is 32"),
        ({"dropout": 1.0}, "at least 0 and below 1"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
