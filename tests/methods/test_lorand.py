"""LoRand: what the paper and its authors' later code say about it, checked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.additive.lorand import LowRankAdapter, attach, through
from reference_impls.backbones import Size, build, pretrained
from reference_impls.claims import measure
from reference_impls.claims.trial import base_output, distance, like

from .cases import trial
from .parity import matrices_computed, randomize
from .refused import assert_refused


def site(m: int = 12, n: int = 6, branches: int = 2, kernel: int = 2, *, shared: bool = True) -> LowRankAdapter:
    """An adapter behind nothing, away from the start."""
    torch.manual_seed(0)
    layer = LowRankAdapter(nn.Identity(), torch.empty(1, m, dtype=torch.float64), n, branches, kernel, shared)
    randomize(list(layer.parameters()))
    return layer


def tokens(m: int = 12) -> Tensor:
    return torch.randn(2, 5, m, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def count(m: int, branches: int, kernel: int, *, shared: bool = True) -> int:
    return sum(p.numel() for p in site(m, m // 2, branches, kernel, shared=shared).parameters())


def test_counts_of_one_adapter() -> None:
    assert count(128, 2, 8) == 6_464
    assert count(128, 4, 8) == 12_736
    assert count(128, 4, 8, shared=False) == 12_992
    assert 2 * 128 * 64 + 192 == 16_576  # a dense adapter as wide


def test_share_of_the_backbone_is_within_the_papers() -> None:
    size = Size(L=12, d=768, f=3072, heads=12, head_dim=64, positions=197, C=1000, patch=16, image=224)
    for branches in (2, 4):
        adapter = attach(build("vit", size, device="meta"), branches=branches, train_head=False)
        assert 0.01 < adapter.count() / 86_567_656 < 0.03


@pytest.mark.parametrize("settings", [{"shared": False, "kernel": 3}, {"reduction": 3, "train_head": False}])
def test_the_formula_holds_for_other_settings(settings: dict[str, Any]) -> None:
    usual = trial("lorand", "vit")
    other = replace(usual, expected=replace(usual.expected, hyperparameters=settings, reported=()))
    assert measure("trained-parameters", other).status == "verified"


@pytest.mark.parametrize("shared", [True, False])
def test_adapter_is_the_equation(shared: bool) -> None:
    layer, x = site(shared=shared), tokens()
    W_down = sum(layer.P_down[i] @ layer.K[0, i] @ layer.Q_down[i] for i in range(2))
    W_up = sum(layer.P_up[i] @ layer.K[-1, i] @ layer.Q_up[i] for i in range(2))
    expected = F.gelu(x @ W_down + layer.b_down) @ W_up + layer.b_up
    assert torch.allclose(layer(x), x + expected, rtol=0, atol=1e-12)
    assert torch.allclose(layer.weights()[0], W_down, rtol=0, atol=1e-12)
    assert torch.allclose(layer.weights()[1], W_up, rtol=0, atol=1e-12)


def test_kernels_are_shared_or_each_projections_own() -> None:
    shared, own, x = site(), site(shared=False), tokens()
    assert (shared.K.shape, own.K.shape) == ((1, 2, 2, 2), (2, 2, 2, 2))
    with torch.no_grad():
        for name, p in shared.named_parameters():
            own.get_parameter(name).copy_(p)  # the shared kernels to both
    assert torch.equal(own(x), shared(x))
    for layer in (shared, own):
        (layer(x) * torch.arange(12)).sum().backward()
    assert shared.K.grad is not None
    assert own.K.grad is not None
    assert torch.allclose(shared.K.grad[0], own.K.grad.sum(0), rtol=0, atol=1e-10)
    assert (own.K.grad[0] - own.K.grad[1]).abs().max() > 1e-3


def test_rank_of_both_projections_is_branches_times_kernel() -> None:
    for W in site(12, 8, branches=3, kernel=2).weights():
        values = torch.linalg.svdvals(W)
        assert values[5] > 1e-3
        assert values[6] < 1e-12


def test_enough_branches_hold_any_dense_adapter() -> None:
    layer = site(12, 6, branches=3, kernel=2, shared=False)
    down, up = torch.randn(12, 6, dtype=torch.float64), torch.randn(6, 12, dtype=torch.float64)
    with torch.no_grad():
        layer.K.copy_(torch.eye(2).expand(2, 3, 2, 2))
        layer.P_down.copy_(down.unflatten(1, (3, 2)).movedim(1, 0))
        layer.Q_down.copy_(torch.eye(6).unflatten(0, (3, 2)))
        layer.P_up.copy_(torch.eye(6).unflatten(1, (3, 2)).movedim(1, 0))
        layer.Q_up.copy_(up.unflatten(0, (3, 2)))
    for W, dense in zip(layer.weights(), (down, up), strict=True):
        assert torch.allclose(W, dense, rtol=0, atol=1e-14)


def test_kernels_of_zero_leave_a_constant_shift() -> None:
    layer, x = site(), tokens()
    with torch.no_grad():
        layer.K.zero_()
    assert torch.equal(layer(x), x + layer.b_up)


def test_order_of_branches_is_irrelevant() -> None:
    layer, x = site(branches=3), tokens()
    before = layer(x)
    with torch.no_grad():
        for p in (layer.P_down, layer.Q_down, layer.P_up, layer.Q_up):
            p.copy_(p.flip(0))
        layer.K.copy_(layer.K.flip(1))
    assert torch.allclose(layer(x), before, rtol=0, atol=1e-12)


def test_no_projection_is_put_together() -> None:
    layer, x = site(12, 6), tokens()
    shapes = matrices_computed(lambda: layer.change(x))
    assert not {(12, 6), (6, 12)} & shapes
    assert (12, 6) in matrices_computed(lambda: x @ layer.weights()[0])


@pytest.mark.parametrize(("a", "b"), [(5, 7), (7, 5)])
def test_factors_act_in_order(a: int, b: int) -> None:
    x, P, K, Q = (torch.randn(*s, dtype=torch.float64) for s in ((4, a), (3, a, 2), (3, 2, 2), (3, 2, b)))
    assert torch.allclose(through(x, P, K, Q), x @ (P @ K @ Q).sum(0), rtol=0, atol=1e-12)


def test_two_adapters_a_block_inside_its_skip_connection() -> None:
    model = pretrained("vit").double()
    adapter = attach(model, branches=2, kernel=4, train_head=False)
    randomize(adapter.parameters(), 0.1)
    assert list(adapter.sites()) == [
        f"stack.blocks.{layer}.{name}" for layer in range(3) for name in ("attention", "mlp")
    ]
    block: Any = model.get_submodule("stack.blocks.1")
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    h = block.attention.base(block.norm1(x))
    first = x + h + block.attention.change(h)
    h = block.mlp.base(block.norm2(first))
    assert torch.allclose(block(x), first + h + block.mlp.change(h), rtol=0, atol=1e-12)


def test_norms_and_the_rest_of_the_backbone_are_not_trained() -> None:
    adapter = attach(pretrained("vit"))
    names = {name.rpartition(".")[2] for name, _ in adapter.named_parameters()}
    assert names == {"P_down", "Q_down", "P_up", "Q_up", "K", "b_down", "b_up", "d"}
    assert [n for n, _ in adapter.named_parameters() if n.endswith(".d")] == [
        "head.parametrizations.weight.0.d",
        "head.parametrizations.bias.0.d",
    ]


def test_start_is_that_of_linear_layers_and_small_but_not_nothing() -> None:
    torch.manual_seed(0)
    layer = LowRankAdapter(nn.Identity(), torch.empty(1, 400), 200, 6, 9, True)
    for p, columns in (
        (layer.P_down, 9),
        (layer.Q_down, 200),
        (layer.P_up, 9),
        (layer.Q_up, 400),
        (layer.K, 9),
        (layer.b_down, 400),
        (layer.b_up, 200),
    ):
        bound = 1 / math.sqrt(columns)
        assert 0.95 * bound < p.abs().max() <= bound
        assert abs(p.mean()) < 0.1 * bound
    reference = nn.init.kaiming_uniform_(torch.empty(400, 9), a=math.sqrt(5))
    assert layer.P_down.std().item() == pytest.approx(reference.std().item(), rel=0.05)
    model = pretrained("vit").double()
    attach(model, branches=2, kernel=4)
    batch = like(model, model.batch(0))
    with torch.no_grad():
        assert 1e-3 < distance(model(batch), base_output("vit", torch.float64, batch)) < 1


def test_strength_scales_what_the_adapter_adds() -> None:
    layer, x = site(), tokens()
    change = layer(x) - x
    for c in (-1.0, 0.0, 0.5):
        layer.strength = c
        assert torch.allclose(layer(x) - x, c * change, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"branches": 0}, "branches 0, kernel 8, reduction 2: need 1 or more"),
        ({"kernel": 0}, "branches 4, kernel 0"),
        ({"reduction": 0}, "a reduction of at most the width, 32"),
        ({"reduction": 33}, "a reduction of at most the width, 32"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)


def test_a_model_without_sublayers_is_refused() -> None:
    with pytest.raises(AdapterError, match="no module named attention or mlp"):
        attach(nn.Sequential())
